//! Which share of the columns gets which width: the formats of the family.

use super::bands::{Bands, Group};
use crate::codec::Codec;
use crate::codec::affine::name::Name;

/// Columns of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub bits: usize,
    /// Of all columns, rounded up to whole groups. The last share is what remains.
    pub percent: usize,
    pub group: usize,
}

/// A format: up to three bands, the widest first.
#[derive(Clone, Copy)]
pub struct Mix {
    name: Name,
    bands: [Share; 3],
    count: usize,
}

impl Mix {
    pub fn name(&self) -> &str {
        self.name.text()
    }

    /// Bands with their groups and columns, as exllamav2 rounds them.
    fn parts(&self, cols: usize) -> impl Iterator<Item = (Share, usize, usize)> {
        let mut left = cols;
        self.bands[..self.count].iter().enumerate().map(move |(n, band)| {
            let whole = (cols as u128 * band.percent as u128).div_ceil(100 * band.group as u128) as usize;
            let groups =
                if n + 1 == self.count { left.div_ceil(band.group) } else { whole.min(left.div_ceil(band.group)) };
            let columns = left.min(groups.saturating_mul(band.group));
            left -= columns;
            (*band, groups, columns)
        })
    }

    /// Groups and rows of words, `cols` being a multiple of [`super::COLS`].
    pub(super) fn size(&self, cols: usize) -> (usize, usize) {
        let sum = |(groups, words), (band, more, columns): (Share, usize, usize)| {
            (groups + more, words + columns / 32 * band.bits)
        };
        self.parts(cols).fold((0, 0), sum)
    }

    /// The groups of a weight with `cols` columns.
    pub fn bands(&self, cols: usize) -> Bands {
        let (mut groups, mut column, mut word) = (Vec::new(), 0, 0);
        for (band, _, columns) in self.parts(cols) {
            let end = column + columns;
            while column < end {
                let until = end.min(column + band.group);
                groups.push(Group { bits: band.bits, columns: column..until, word });
                word += (until - column) / 32 * band.bits;
                column = until;
            }
        }
        Bands { groups }
    }

    /// `8b5g32+4b10+3b-g128`: 5 % of the columns in 8 bits and groups of 32, then 10 % in 4 bits, the others in 3, in groups of 128.
    const fn named(mut self) -> Mix {
        let group = self.bands[self.count - 1].group;
        self.name.push("exl2-");
        let mut n = 0;
        while n < self.count {
            let band = self.bands[n];
            self.name.number(band.bits);
            self.name.push("b");
            if n + 1 < self.count {
                self.name.number(band.percent);
                if band.group != group || n + 2 < self.count {
                    self.name.push("g");
                    self.name.number(band.group);
                }
                self.name.push("+");
            }
            n += 1;
        }
        self.name.push("-g");
        self.name.number(group);
        self
    }

    const fn new(top: Option<Share>, upper: Share, lower: Option<Share>) -> Mix {
        let mut mix = Mix { name: Name::EMPTY, bands: [upper; 3], count: 0 };
        if let Some(top) = top {
            mix.bands[mix.count] = top;
            mix.count += 1;
        }
        mix.bands[mix.count] = upper;
        mix.count += 1;
        if let Some(lower) = lower {
            mix.bands[mix.count] = lower;
            mix.count += 1;
        }
        mix.named()
    }
}

const GROUPS: [usize; 3] = [128, 64, 32];
/// Neighbouring widths.
const PAIRS: [(usize, usize); 5] = [(3, 2), (4, 3), (5, 4), (6, 5), (8, 6)];
/// In steps of 5 %, the narrow width alone included.
const SHARES: usize = 20;
/// What the most active columns may have to themselves.
const TOP: Share = Share { bits: 8, percent: 5, group: 32 };
/// Further mixes of exllamav2.
const MORE: [Mix; 5] = [
    Mix::new(Some(TOP), band(6, 0, 128), None),
    Mix::new(Some(band(6, 5, 32)), band(3, 20, 64), Some(band(2, 0, 64))),
    Mix::new(None, band(5, 5, 32), Some(band(3, 0, 32))),
    Mix::new(None, band(4, 30, 32), Some(band(2, 0, 32))),
    Mix::new(None, band(6, 15, 32), Some(band(4, 0, 32))),
];

const PLAIN: usize = PAIRS.len() * SHARES;
/// For each group: every pair and share, the narrower ones also under [`TOP`] while there are columns left for both, and 8 bits.
const EACH: usize = PLAIN + (PAIRS.len() - 1) * (SHARES - 1) + 1;
const COUNT: usize = GROUPS.len() * EACH + MORE.len();

const fn band(bits: usize, percent: usize, group: usize) -> Share {
    Share { bits, percent, group }
}

static MIXES: [Mix; COUNT] = {
    let mut out = [MORE[0]; COUNT];
    let mut n = 0;
    while n < GROUPS.len() * EACH {
        let (group, i) = (GROUPS[n / EACH], n % EACH);
        let (top, i, shares) = if i < PLAIN { (None, i, SHARES) } else { (Some(TOP), i - PLAIN, SHARES - 1) };
        let (wide, narrow) = PAIRS[i / shares % PAIRS.len()];
        out[n] = match i % shares * (100 / SHARES) {
            _ if n % EACH == EACH - 1 => Mix::new(None, band(8, 0, group), None),
            0 => Mix::new(top, band(narrow, 0, group), None),
            percent => Mix::new(top, band(wide, percent, group), Some(band(narrow, 0, group))),
        };
        n += 1;
    }
    while n < COUNT {
        out[n] = MORE[n - GROUPS.len() * EACH];
        n += 1;
    }
    out
};

pub static CODECS: [&dyn Codec; COUNT] = {
    let mut out: [&dyn Codec; COUNT] = [&MIXES[0]; COUNT];
    let mut n = 0;
    while n < COUNT {
        out[n] = &MIXES[n];
        n += 1;
    }
    out
};

/// The format of a weight with these groups.
pub fn with_bands(bands: &Bands, cols: usize) -> Option<&'static dyn Codec> {
    let words = |b: &Bands| b.groups.last().map(|g| (b.groups.len(), g.word, g.bits));
    let fits = |mix: &&Mix| mix.size(cols).0 == bands.groups.len() && words(&mix.bands(cols)) == words(bands);
    MIXES.iter().filter(fits).find(|mix| mix.bands(cols) == *bands).map(|mix| mix as &dyn Codec)
}

/// The format of this name, share by share; the last one's percentage is what remains.
pub fn shares(name: &str) -> Option<Vec<Share>> {
    let mix = MIXES.iter().find(|m| m.name() == name)?;
    let mut out = mix.bands[..mix.count].to_vec();
    let last = out.pop()?;
    let percent = 100 - out.iter().map(|s| s.percent).sum::<usize>();
    out.push(Share { percent, ..last });
    Some(out)
}

/// The inverse of [`shares`].
pub fn with_shares(wanted: &[Share]) -> Option<&'static dyn Codec> {
    let same = |mix: &&Mix| shares(mix.name()).is_some_and(|own| own == wanted);
    MIXES.iter().find(same).map(|mix| mix as &dyn Codec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    fn mix(name: &str) -> &'static Mix {
        MIXES.iter().find(|m| m.name() == name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// (bits, columns, group) of each band.
    fn runs(name: &str, cols: usize) -> Vec<(usize, usize, usize)> {
        mix(name).parts(cols).map(|(band, groups, columns)| (band.bits, columns, groups)).collect()
    }

    #[test]
    fn shares_are_rounded_as_exllamav2_does() {
        assert_eq!(runs("exl2-8b15+6b-g128", 4096), [(8, 640, 5), (6, 3456, 27)]);
        assert_eq!(runs("exl2-8b5g32+4b10+3b-g128", 4096), [(8, 224, 7), (4, 512, 4), (3, 3360, 27)]);
        // The last group of all is cut off.
        assert_eq!(runs("exl2-3b5+2b-g64", 4128), [(3, 256, 4), (2, 3872, 61)]);
        // Too small for both.
        assert_eq!(runs("exl2-4b10+3b-g128", 96), [(4, 96, 1), (3, 0, 0)]);
        assert_eq!(runs("exl2-6b5g32+3b20+2b-g64", 4096), [(6, 224, 7), (3, 832, 13), (2, 3040, 48)]);
    }

    #[test]
    fn bands_have_the_predicted_size_and_are_known_again() {
        for mix in &MIXES {
            for cols in [32, 96, 256, 512, 4096, 11008] {
                let bands = mix.bands(cols);
                let (groups, words) = mix.size(cols);
                assert_eq!(Bands::parse(&bands.bytes(), words, cols).unwrap(), bands, "{} {cols}", mix.name());
                assert_eq!(bands.groups.len(), groups);
                let found = with_bands(&bands, cols).unwrap();
                assert!(cols < 4096 || found.name() == mix.name(), "{} is taken for {}", mix.name(), found.name());
                assert!(codec::find(mix.name()).unwrap().bytes(crate::tensor::Dims::new(8, cols)).is_ok());
            }
        }
    }

    #[test]
    fn mixes_cover_two_to_eight_bits() {
        let mut bits: Vec<f64> = CODECS.iter().map(|c| codec::bits_per_weight(*c).unwrap()).collect();
        bits.sort_by(f64::total_cmp);
        assert!(bits[0] < 2.1 && *bits.last().unwrap() > 8.0);
        assert!(bits.windows(2).all(|w| w[1] - w[0] < 0.11), "no gaps");
    }
}
