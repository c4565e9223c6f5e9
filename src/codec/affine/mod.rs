//! Formats of Hugging Face folders whose weights are integers: `w = (q - zero) * scale`, with `q` from 0 to 2^bits - 1, or
//! `w = q * scale + offset`.
//! What they share is here; how a family lays its parts out is its [`Form`], one file a family.

mod fit;
pub(super) mod name;

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;

use safetensors::Dtype;

use super::facts::{DeviceFit, DeviceGrid, Facts, type_name};
use super::grid::{Codes, Grid, Levels, Scale};
use super::scheme::{Family, Scheme, Zero};
use super::{Codec, Part};
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};
pub use fit::{LANES, numbers};
use name::Name;

/// A matrix taken apart: `scales` as stored, `[rows][groups]`; `zeros` `[rows][groups]`, a byte each or, where they are free,
/// as stored; `codes` `[rows][cols]`.
pub struct Taken<'a> {
    pub scales: Vec<u8>,
    pub zeros: Vec<u8>,
    pub codes: Cow<'a, [u8]>,
}

/// How a family lays out the integers, zeros and scales of a matrix.
pub trait Form: Send + Sync + 'static {
    /// Every name of the family, in short.
    const PATTERN: &'static str;
    const ABOUT: &'static str;

    /// Template arguments of the struct of its name in `kernels/grid/affine.cuh`.
    fn device(scheme: &Scheme) -> Vec<usize>;

    /// Rows and columns come in multiples of these; columns in whole groups as well.
    fn multiples(scheme: &Scheme) -> Dims;
    /// `dims` has passed [`Scheme::check`].
    fn layout(scheme: &Scheme, dims: Dims) -> Result<Vec<Part>>;
    fn decode(scheme: &Scheme, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]);
    /// In the order of the layout.
    fn pack(scheme: &Scheme, dims: Dims, taken: &Taken<'_>) -> Vec<Vec<u8>>;
    /// `None` where groups are no runs of columns, or a zero does not fit into the codes' range.
    fn unpack(scheme: &Scheme, packed: &Packed<'_>) -> Option<Taken<'static>>;
}

/// One format of a family.
pub struct Row<F> {
    name: Name,
    scheme: Scheme,
    form: PhantomData<F>,
}

impl<F> Clone for Row<F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Row<F> {}

impl<F: Form> Row<F> {
    /// Stored parameters of a group: the scale, then the zero unless it is in the middle.
    fn write(&self, scale: Scale, params: &mut [u8]) {
        let (step, zero) = params.split_at_mut(self.scheme.scale_bytes());
        self.scheme.write_scale(scale.step, step);
        match zero {
            [] => {}
            [zero] => *zero = scale.zero as u8,
            offset => self.scheme.write_scale(scale.offset, offset),
        }
    }

    fn read(&self, params: &[u8]) -> Scale {
        let (step, zero) = params.split_at(self.scheme.scale_bytes());
        let step = self.scheme.read_scale(step, 0);
        match zero {
            [] => self.scheme.at_zero(step),
            [zero] => Scale { step, zero: f32::from(*zero), offset: 0.0 },
            offset => Scale { step, zero: 0.0, offset: self.scheme.read_scale(offset, 0) },
        }
    }

    fn multiples(&self) -> Dims {
        let form = F::multiples(&self.scheme);
        // Both are powers of two.
        Dims::new(form.rows, form.cols.max(self.scheme.group.unwrap_or(1)))
    }
}

impl<F: Form> Codec for Row<F> {
    fn name(&self) -> &str {
        self.name.text()
    }

    fn pattern(&self) -> &str {
        F::PATTERN
    }

    fn about(&self) -> &'static str {
        F::ABOUT
    }

    fn layout(&self, dims: Dims) -> Result<Vec<Part>> {
        self.scheme.check(dims, self.multiples())?;
        let parts = F::layout(&self.scheme, dims)?;
        let overflow = || Error::input(format!("{} x {} weights overflow", dims.rows, dims.cols));
        let sum = parts.iter().try_fold(dims.rows.checked_mul(dims.cols).ok_or_else(overflow)?, |sum, part| {
            sum.checked_add(part.bytes).ok_or_else(overflow)
        });
        sum.map(|_| parts)
    }

    fn multiples(&self) -> Dims {
        Row::multiples(self)
    }

    fn decode(&self, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        if !rows.is_empty() && packed.dims.cols > 0 {
            F::decode(&self.scheme, packed, rows, out);
        }
    }

    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }

    fn scheme(&self) -> Option<&Scheme> {
        Some(&self.scheme)
    }

    fn unpack(&self, packed: &Packed<'_>) -> Option<Codes> {
        let Taken { scales, zeros, codes } = F::unpack(&self.scheme, packed)?;
        if self.scheme.symmetric && zeros.iter().any(|z| *z != self.scheme.middle()) {
            return None;
        }
        let (width, size) = (self.scheme.scale_bytes(), self.param_bytes());
        let mut params = vec![0; scales.len() / width * size];
        let stored = scales.chunks_exact(width).zip(zeros.chunks_exact(self.scheme.zero_bytes()));
        for (params, (scale, zero)) in params.chunks_exact_mut(size).zip(stored) {
            params[..width].copy_from_slice(scale);
            params[width..].copy_from_slice(&zero[..size - width]);
        }
        Some(Codes { params, codes: codes.into_owned() })
    }
}

impl<F: Form> Grid for Row<F> {
    fn group(&self, cols: usize) -> usize {
        self.scheme.columns(cols)
    }

    fn span(&self, cols: usize) -> usize {
        self.scheme.columns(cols)
    }

    fn levels(&self) -> Levels {
        Levels::Integers { first: 0, count: 1 << self.scheme.bits }
    }

    fn param_bytes(&self) -> usize {
        let zero = if self.scheme.zero() == Zero::Middle { 0 } else { self.scheme.zero_bytes() };
        self.scheme.scale_bytes() + zero
    }

    fn fit(&self, w: &[f32], cols: usize, importance: Option<&[f32]>, params: &mut [u8]) {
        let group = self.scheme.columns(cols).max(1);
        let per_row = cols / group;
        for (n, (w, params)) in w.chunks_exact(group).zip(params.chunks_exact_mut(self.param_bytes())).enumerate() {
            let importance = importance.map(|i| &i[n % per_row * group..][..group]);
            self.write(fit::group(&self.scheme, w, importance), params);
        }
    }

    fn scales(&self, params: &[u8], out: &mut [Scale]) {
        out[0] = self.read(params);
    }

    fn facts(&self) -> Option<Facts> {
        let grid = DeviceGrid {
            file: "affine",
            name: type_name::<F>(),
            arguments: F::device(&self.scheme),
            numbers: Vec::new(),
            levels: Grid::levels(self),
            block: false,
        };
        let (top, zero, range) = (self.scheme.top(), self.scheme.zero(), self.scheme.range());
        let fit = DeviceFit::Integers { top, zero, range };
        Some(Facts { group: self.scheme.group, scales: Some(self.scheme.scales), fit: Some(fit), ..grid.facts() })
    }

    fn fit_largest(&self, w: &[f32], cols: usize, params: &mut [u8]) {
        let group = self.scheme.columns(cols).max(1);
        for (w, params) in w.chunks_exact(group).zip(params.chunks_exact_mut(self.param_bytes())) {
            self.write(fit::largest(&self.scheme, w), params);
        }
    }

    fn adopt(&self, scales: &[Scale], params: &mut [u8]) -> bool {
        let &[scale] = scales else { return false };
        let (step, middle) = (scale.step, f32::from(self.scheme.middle()));
        let zero = scale.zero - scale.offset / step;
        let fits = zero == zero.trunc() && (0.0..=self.scheme.top() as f32).contains(&zero);
        let offset = scale.offset - scale.zero * step;
        // Where codes are to spare, another zero is as good; one in the middle is a power of two, which rounds nothing.
        let offset = if self.scheme.stored(offset) == offset { offset } else { -middle * step };
        self.write(Scale { step, zero: if fits { zero } else { middle }, offset }, params);
        self.scheme.stored(step) == step
    }

    fn pack(&self, dims: Dims, params: &[u8], codes: &[u8]) -> Vec<Vec<u8>> {
        let (width, middle) = (self.scheme.scale_bytes(), [self.scheme.middle()]);
        let params = || params.chunks_exact(self.param_bytes());
        let taken = Taken {
            scales: params().flat_map(|p| &p[..width]).copied().collect(),
            zeros: params().flat_map(|p| if p.len() > width { &p[width..] } else { &middle }).copied().collect(),
            codes: codes.into(),
        };
        F::pack(&self.scheme, dims, &taken)
    }
}

/// Groups that published artifacts use.
pub(super) const GROUPS: &[Option<usize>; 8] =
    &[Some(16), Some(32), Some(64), Some(128), Some(256), Some(512), Some(1024), None];

const SCALES: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

/// Rows for one width and symmetry.
pub(super) const VARIANTS: usize = variants(GROUPS);

pub(super) const fn variants(groups: &[Option<usize>]) -> usize {
    groups.len() * SCALES.len()
}

/// What the names of a family are made of: `gptq-4bit-g128`, `pack-4bit-g128-sym-f16`.
pub(super) struct Naming {
    pub family: Family,
    pub prefix: &'static str,
    /// Whether names say `sym` or `asym`.
    pub symmetry: bool,
    /// The type of scales that names do not mention.
    pub scales: Dtype,
    pub groups: &'static [Option<usize>],
}

/// All formats of a family: each width and symmetry in each group size and type of scale. `N` is
/// `widths.len() * symmetric.len() * variants(groups)`.
pub(super) const fn rows<F: Form, const N: usize>(naming: Naming, widths: &[usize], symmetric: &[bool]) -> [Row<F>; N] {
    let blank = Scheme { family: naming.family, bits: 4, group: None, symmetric: true, scales: naming.scales };
    let mut out = [Row { name: Name::EMPTY, scheme: blank, form: PhantomData }; N];
    let (variants, each) = (variants(naming.groups), naming.groups.len());
    let kinds = symmetric.len() * variants;
    assert!(N == widths.len() * kinds);
    let mut n = 0;
    while n < N {
        let scheme = Scheme {
            family: naming.family,
            bits: widths[n / kinds],
            symmetric: symmetric[n % kinds / variants],
            scales: SCALES[n % variants / each],
            group: naming.groups[n % each],
        };
        out[n] = Row { name: Name::of(&naming, &scheme), scheme, form: PhantomData };
        n += 1;
    }
    out
}

pub(super) const fn table<F: Form, const N: usize>(rows: &'static [Row<F>; N]) -> [&'static dyn Codec; N] {
    let mut out: [&dyn Codec; N] = [&rows[0]; N];
    let mut n = 0;
    while n < N {
        out[n] = &rows[n];
        n += 1;
    }
    out
}

/// Values of codes under one scale and zero.
#[inline(always)]
pub(super) fn values(codes: &[u8], zero: u8, scale: f32, out: &mut [f32]) {
    for (out, code) in out.iter_mut().zip(codes) {
        *out = f32::from(i16::from(*code) - i16::from(zero)) * scale;
    }
}

#[cfg(test)]
mod tests {
    use crate::codec;

    #[test]
    fn a_scheme_has_one_format_and_its_name_says_so() {
        let mut seen = 0;
        for codec in codec::all() {
            let Some(scheme) = codec.scheme() else { continue };
            assert_eq!(codec::with_scheme(scheme).unwrap().name(), codec.name());
            assert!(
                !scheme.family.is_integer() || codec.name().contains(&format!("-{}bit-", scheme.bits)),
                "{}",
                codec.name()
            );
            seen += 1;
        }
        assert!(seen > 100);
        for name in [
            "gptq-4bit-g128",
            "gptq-v2-3bit-g32",
            "awq-4bit-g64-bf16",
            "pack-5bit-channel-asym",
            "int-8bit-channel-sym",
        ] {
            assert_eq!(codec::find(name).unwrap().name(), name);
        }
    }
}
