//! Small functions of a toy language, one applied to the other.

use super::Skill;
use super::choices::Choices;

pub const SKILL: Skill = Skill {
    name: "function",
    about: "the output of small functions in a toy language, call by call",
    stretches: false,
    asks: true,
    draw: |choices, _| choices.until(program, Option::is_some).unwrap_or_default(),
};

struct Function {
    name: String,
    operator: char,
    constant: u32,
}

impl Function {
    fn draw(choices: &mut Choices) -> Function {
        let operator = *choices.pick(&['+', '-', '*']);
        let constant = if operator == '*' { 2 } else { choices.between(1, 9) as u32 };
        Function { name: choices.syllable(), operator, constant }
    }

    /// `None` below zero.
    fn apply(&self, x: u32) -> Option<u32> {
        match self.operator {
            '+' => Some(x + self.constant),
            '-' => x.checked_sub(self.constant),
            _ => Some(x * self.constant),
        }
    }
}

/// `None`: a result is negative, or two functions have one name.
fn program(choices: &mut Choices) -> Option<(String, String)> {
    let functions = [(); 3].map(|()| Function::draw(choices));
    let [a, b, c] = &functions;
    if a.name == b.name || b.name == c.name || a.name == c.name {
        return None;
    }
    let x = choices.between(1, 12) as u32;
    let used = choices.distinct(&functions.iter().collect::<Vec<_>>(), 2);
    let (mut value, mut call, mut work) = (x, x.to_string(), Vec::new());
    for f in used {
        let result = f.apply(value)?;
        work.push(format!("{}({value}) = {value} {} {} = {result}", f.name, f.operator, f.constant));
        call = format!("{}({call})", f.name);
        value = result;
    }
    let lines: String =
        functions.iter().map(|f| format!("fn {}(x) = x {} {}\n", f.name, f.operator, f.constant)).collect();
    Some((format!("{lines}What is {call}?\n"), work.join("\n")))
}
