//! Numbers to be sorted.

use super::Skill;

pub const SKILL: Skill = Skill {
    name: "sort",
    about: "3 to 7 numbers of two digits, in ascending order",
    stretches: false,
    asks: true,
    draw: |choices, _| {
        let count = choices.between(3, 7);
        let mut numbers = choices.distinct(&(10..100).collect::<Vec<u32>>(), count);
        let show = |list: &[u32]| list.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let prompt = format!("Sort these numbers.\n{}\n", show(&numbers));
        numbers.sort_unstable();
        (prompt, show(&numbers))
    },
};
