//! The date that chat templates ask for. UTC, English names: what a template says must not depend on a machine's settings.
//! Source: strftime(3), the directives that templates use.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Errors: a directive that is not known.
pub fn format(format: &str, seconds: u64) -> Result<String> {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[((days + 4) % 7) as usize]);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        out += &match rest.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('d') => format!("{day:02}"),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('H') => format!("{:02}", time / 3600),
            Some('M') => format!("{:02}", time / 60 % 60),
            Some('S') => format!("{:02}", time % 60),
            Some('%') => "%".to_owned(),
            other => {
                let directive: String = other.into_iter().collect();
                return Err(Error::unsupported(format!("%{directive} in a date is not known")));
            }
        };
    }
    Ok(out)
}

/// (year, month, day) of a day since 1970. Years begin in March here, so that a leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * march + 2) / 5 + 1, if march < 10 { march + 3 } else { march - 9 });
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_the_calendar_s() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 Thursday"),
            (951_782_399, "2000-02-28 23:59:59 Monday"),
            (951_782_400, "2000-02-29 00:00:00 Tuesday"),
            (951_868_800, "2000-03-01 00:00:00 Wednesday"),
            (1_735_689_599, "2024-12-31 23:59:59 Tuesday"),
            (4_107_542_400, "2100-03-01 00:00:00 Monday"),
        ] {
            assert_eq!(format("%Y-%m-%d %H:%M:%S %A", seconds).unwrap(), text);
        }
        assert_eq!(format("%d %b %Y, %a %B %y, 100%%", 951_782_400).unwrap(), "29 Feb 2000, Tue February 00, 100%");
        assert!(format("%", 0).is_err() && format("%é", 0).is_err());
    }

    #[test]
    fn every_day_follows_the_last() {
        let mut last = date(0);
        for day in 1..200_000 {
            let next = date(day);
            let step = (next.0 - last.0, next.1 as i64 - last.1 as i64, next.2);
            let ok = next.2 == last.2 + 1 && next.1 == last.1 || step.2 == 1 && (step.1 == 1 || step == (1, -11, 1));
            assert!(ok, "{last:?} {next:?}");
            last = next;
        }
    }
}
