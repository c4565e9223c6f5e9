//! Variables that are set to numbers or to each other; the question is what one of them is.

use std::collections::HashSet;

use super::Skill;
use super::choices::Choices;

pub const SKILL: Skill = Skill {
    name: "variables",
    about: "the value of a variable that was set to another variable, and so on",
    stretches: true,
    asks: true,
    draw: variables,
};

/// Characters of one line.
const LINE: usize = "let ab = cd\n".len();

fn variables(choices: &mut Choices, length: Option<usize>) -> (String, String) {
    let count = length.map_or_else(|| choices.between(3, 12), |l| (l / LINE).max(1));
    // Twice as many names as variables, else a new one would be hard to find.
    let letters = (1..).find(|n| 26usize.pow(*n) >= 2 * count).unwrap_or(1);
    let mut known = HashSet::new();
    let mut set: Vec<(String, String)> = Vec::new();
    let mut code = String::new();
    for i in 0..count {
        let letter = |c: &mut Choices| char::from(b'a' + c.below(26) as u8);
        let name =
            choices.until(|c| (0..letters).map(|_| letter(c)).collect::<String>(), |n: &String| !known.contains(n));
        known.insert(name.clone());
        // The name and everything it stands for, to the number.
        let (value, chain) = if i > 0 && choices.below(3) > 0 {
            choices.pick(&set).clone()
        } else {
            let number = choices.between(10, 99).to_string();
            (number.clone(), number)
        };
        code += &format!("let {name} = {value}\n");
        set.push((name.clone(), format!("{name} = {chain}")));
    }
    let (name, answer) = choices.pick(&set);
    (format!("{code}What is {name}?\n"), answer.clone())
}
