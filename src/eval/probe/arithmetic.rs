//! Addition with the work shown: digit plus digit plus carry, from the right.

use super::Skill;
use super::choices::Choices;

pub const SKILL: Skill = Skill {
    name: "arithmetic",
    about: "sums of two numbers of 2 to 4 digits, carried digit by digit",
    stretches: false,
    asks: true,
    draw: |choices, _| sum(choices),
};

fn sum(choices: &mut Choices) -> (String, String) {
    let digits = choices.between(2, 4);
    let mut number = || -> Vec<usize> { (0..digits).map(|i| choices.between(usize::from(i == 0), 9)).collect() };
    let (a, b) = (number(), number());
    let (mut carry, mut work, mut result) = (0, String::new(), String::new());
    for (x, y) in a.iter().zip(&b).rev() {
        let sum = x + y + carry;
        work += &format!("{x}+{y}+{carry}={sum:02}\n");
        carry = sum / 10;
        result.insert_str(0, &(sum % 10).to_string());
    }
    if carry > 0 {
        result.insert(0, '1');
    }
    let show = |n: &[usize]| n.iter().map(usize::to_string).collect::<String>();
    (format!("Add {} and {}.\n", show(&a), show(&b)), work + &result)
}
