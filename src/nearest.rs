//! Names that a mistyped one may have been meant to be.

use strsim::damerau_levenshtein;

/// `did you mean a or b?`: the names that are nearest, if any is near. Case and separators do not count.
pub fn did_you_mean<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let plain = |name: &str| name.to_lowercase().replace(|c: char| !c.is_alphanumeric(), "");
    let typed = plain(typed);
    // Half of the letters; more is another word.
    let most = (typed.chars().count() / 2).max(1);
    let mut near: Vec<(usize, &str)> = known.map(|name| (damerau_levenshtein(&typed, &plain(name)), name)).collect();
    let least = near.iter().map(|(distance, _)| *distance).min().filter(|least| *least <= most)?;
    near.retain(|(distance, _)| *distance == least);
    near.truncate(SHOWN);
    let names: Vec<&str> = near.iter().map(|(_, name)| *name).collect();
    let (last, others) = names.split_last()?;
    let names = if others.is_empty() { (*last).to_owned() } else { format!("{} or {last}", others.join(", ")) };
    Some(format!("did you mean {names}?"))
}

const SHOWN: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested() {
        let of = |typed: &str| did_you_mean(typed, ["q4_k_m", "q4_k_s", "q8_0", "gptq", "mlx-4bit"].into_iter());
        for (typed, wanted) in [
            ("q4_k_xl", "did you mean q4_k_m or q4_k_s?"),
            ("q4_k_n", "did you mean q4_k_m or q4_k_s?"),
            ("Q4KM", "did you mean q4_k_m?"),
            ("gtpq", "did you mean gptq?"),
            ("mlx4bits", "did you mean mlx-4bit?"),
        ] {
            assert_eq!(of(typed).as_deref(), Some(wanted), "{typed}");
        }
        assert_eq!((of("smallest"), of("")), (None, None));
    }
}
