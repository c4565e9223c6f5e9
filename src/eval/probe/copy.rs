//! Words to be repeated.

use super::Skill;

pub const SKILL: Skill = Skill {
    name: "copy",
    about: "a line of invented words, repeated",
    stretches: true,
    asks: true,
    draw: |choices, length| {
        let count = length.map_or_else(|| choices.between(3, 16), |l| (l / 2 / "bato ".len()).max(1));
        let line = (0..count).map(|_| choices.word(2)).collect::<Vec<_>>().join(" ");
        (format!("Copy this line.\n{line}\n"), line)
    },
};
