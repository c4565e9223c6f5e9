//! What a cache is made of, as users write it: `q4h/q8_0+sink4+window128+skip0,1`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use super::dense::Blocks;
use super::{KV_FORMATS, KvFormat, Stored, Vectors};
use crate::codec::float::{F16, F32};
use crate::error::{At, Error, Result};

static SINGLE: Blocks = Blocks(&F32);
static HALF: Blocks = Blocks(&F16);

/// Types of keys and values, and what stays in half precision.
#[derive(Clone, Default)]
pub struct KvPolicy {
    /// As it was written; empty for single precision.
    name: String,
    /// `None`: single precision, without any of this.
    types: Option<[&'static KvFormat; 2]>,
    sink: Option<usize>,
    window: Option<usize>,
    skip: Vec<RangeInclusive<usize>>,
    /// Of each layer's keys and values, where their types have one.
    scales: Option<Arc<[[f32; 2]]>>,
}

/// How one layer keeps its keys, or its values. Positions are half precision first, unless they are encoded at once; groups of
/// them are encoded when all of a group have left the window.
#[derive(Clone, Copy)]
pub struct Held {
    pub vectors: &'static dyn Vectors,
    pub before_rope: bool,
    /// First positions that stay in half precision, and most recent ones.
    pub sink: usize,
    pub window: usize,
    /// What is encoded are the values divided by it.
    pub scale: f32,
}

impl Held {
    /// As [`Vectors::encode`], under the scale.
    pub fn encode(&self, x: &[f32], head_dim: usize, shared: &[u8], out: &mut [u8]) {
        if self.scale == 1.0 {
            return self.vectors.encode(x, head_dim, shared, out);
        }
        let divided: Vec<f32> = x.iter().map(|x| x / self.scale).collect();
        self.vectors.encode(&divided, head_dim, shared, out);
    }

    /// As [`Vectors::decode`], under the scale.
    pub fn decode(&self, bytes: &[u8], head_dim: usize, shared: &[u8], out: &mut [f32]) {
        self.vectors.decode(bytes, head_dim, shared, out);
        if self.scale != 1.0 {
            out.iter_mut().for_each(|x| *x *= self.scale);
        }
    }

    /// Of `n` positions the first so many are sinks or encoded, the others wait.
    pub fn settled(&self, n: usize) -> usize {
        let group = self.vectors.tokens();
        let behind = n.saturating_sub(self.sink);
        match behind < self.vectors.calibration() {
            true => n.min(self.sink),
            false => n.min(self.sink) + behind.saturating_sub(self.window) / group * group,
        }
    }

    /// Whether positions behind the sinks are encoded as they come, from single precision.
    pub fn at_once(&self) -> bool {
        self.window == 0 && self.vectors.tokens() == 1 && self.vectors.calibration() == 0
    }

    /// Bytes of `n` positions of one head.
    pub fn bytes(&self, n: usize, head_dim: usize) -> usize {
        let settled = self.settled(n);
        let encoded = settled.saturating_sub(self.sink);
        let shared = if encoded > 0 { self.vectors.shared_bytes(head_dim) } else { 0 };
        let plain = n - encoded;
        shared + encoded / self.vectors.tokens() * self.vectors.bytes(head_dim) + plain * F16.bytes * head_dim
    }
}

impl KvPolicy {
    /// The name of single precision.
    pub const FULL: &'static str = F32.name;

    /// Of a list: types are separated by commas, and so are skipped layers.
    ///
    /// Errors: those of [`KvPolicy::from_str`]; the same one twice.
    pub fn list(text: &str) -> Result<Vec<KvPolicy>> {
        let mut items: Vec<String> = Vec::new();
        for part in text.split(',') {
            match items.last_mut() {
                // No type begins with a digit.
                Some(last) if part.starts_with(|c: char| c.is_ascii_digit()) => *last += &format!(",{part}"),
                _ => items.push(part.to_owned()),
            }
        }
        for (i, item) in items.iter().enumerate() {
            if items[..i].contains(item) {
                return Err(Error::request(format!("the cache type {item:?} is named twice")));
            }
        }
        items.iter().map(|item| item.parse()).collect()
    }

    /// As it was written.
    pub fn name(&self) -> &str {
        if self.name.is_empty() { Self::FULL } else { &self.name }
    }

    /// Whether nothing is lost, and nothing has to be encoded.
    pub fn is_full(&self) -> bool {
        self.types.is_none()
    }

    /// Whether any of its types is stored under a scale for each layer, 1 unless [`KvPolicy::scaled`] says more.
    pub fn has_scales(&self) -> bool {
        self.types.is_some_and(|[key, value]| key.key.vectors.scaled() || value.value.vectors.scaled())
    }

    /// The same under these scales of each layer's keys and values.
    pub fn scaled(self, scales: Vec<[f32; 2]>) -> KvPolicy {
        KvPolicy { scales: Some(scales.into()), ..self }
    }

    /// Errors: heads that a type cannot store; a layer to be skipped that does not exist.
    pub fn check(&self, layers: usize, head_dim: usize) -> Result<()> {
        for format in self.types.iter().flatten() {
            for stored in [format.key, format.value] {
                stored.vectors.check(head_dim).at(|| format!("cache type {}", format.name))?;
            }
        }
        match self.skip.iter().find(|range| *range.end() >= layers) {
            Some(range) => Err(Error::request(format!("{}: there is no layer {}", self.name(), range.end()))
                .help(format!("the model has {layers} layers, 0 to {}", layers.saturating_sub(1)))),
            None => Ok(()),
        }
    }

    /// Keys and values of a layer.
    pub fn layer(&self, layer: usize) -> [Held; 2] {
        let Some([key, value]) = self.types.filter(|_| !self.skip.iter().any(|range| range.contains(&layer))) else {
            let vectors: &dyn Vectors = if self.is_full() { &SINGLE } else { &HALF };
            return [Held { vectors, before_rope: false, sink: 0, window: 0, scale: 1.0 }; 2];
        };
        let scales = self.scales.as_ref().and_then(|scales| scales.get(layer)).unwrap_or(&[1.0; 2]);
        let held = |Stored { vectors, before_rope, sink, window }, scale| Held {
            vectors,
            before_rope,
            sink: self.sink.unwrap_or(sink),
            window: self.window.unwrap_or(window),
            scale: if vectors.scaled() { scale } else { 1.0 },
        };
        [held(key.key, scales[0]), held(value.value, scales[1])]
    }

    /// Bytes of a model's cache of `n` positions.
    pub fn bytes(&self, shape: &KvShape, n: usize) -> u64 {
        let layer = |layer| self.layer(layer).iter().map(|held| held.bytes(n, shape.head_dim) as u64).sum::<u64>();
        (0..shape.layers).map(layer).sum::<u64>() * shape.heads as u64
    }

    /// Bytes that each further position costs in the end, all layers together.
    pub fn bytes_per_token(&self, shape: &KvShape) -> f64 {
        let one = |held: &Held| held.vectors.bytes(shape.head_dim) as f64 / held.vectors.tokens() as f64;
        let layer = |layer| self.layer(layer).iter().map(one).sum::<f64>();
        (0..shape.layers).map(layer).sum::<f64>() * shape.heads as f64
    }
}

/// What the size of a cache follows from.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    pub layers: usize,
    /// Of keys and values.
    pub heads: usize,
    pub head_dim: usize,
}

impl FromStr for KvPolicy {
    type Err = Error;

    /// `TYPE` or `KEYS/VALUES`, then any of `+sinkN` (first positions) and `+windowN` (latest positions), which stay in half
    /// precision, and `+skipL,L-L` (layers), which do altogether.
    ///
    /// Errors: a type or an option that does not exist, an option twice, a number that is none: each names the part.
    fn from_str(text: &str) -> Result<KvPolicy> {
        let wrong = |what: String| {
            let error =
                if what.contains(text) { Error::request(what) } else { Error::request(format!("{what} in {text:?}")) };
            let names: Vec<_> = KV_FORMATS.iter().map(|f| f.name).collect();
            error.help(format!(
                "write TYPE or KEYS/VALUES, then what stays in f16: +sink4 (first positions), +window128 (latest positions), \
                 +skip0,1 (layers), as in q4h/q8_0+sink4; types: {}",
                names.join(", ")
            ))
        };
        let find = |name: &str| {
            let found = KV_FORMATS.iter().find(|f| f.name == name);
            found.ok_or_else(|| wrong(format!("there is no cache type {name:?}")))
        };
        let mut parts = text.split('+');
        let types = parts.next().unwrap_or_default();
        let (keys, values) = types.split_once('/').unwrap_or((types, types));
        let mut policy =
            KvPolicy { name: text.to_owned(), types: Some([find(keys)?, find(values)?]), ..Self::default() };
        for part in parts {
            let digits = part.find(|c: char| c.is_ascii_digit()).unwrap_or(part.len());
            let (option, rest) = part.split_at(digits);
            let number = |text: &str| {
                let n = text.parse::<u32>().ok().map(|n| n as usize);
                n.ok_or_else(|| wrong(format!("{text:?} is no number, in +{part}")))
            };
            let once = |value: &mut Option<usize>| match value.replace(number(rest)?) {
                Some(_) => Err(wrong(format!("{option} is given twice"))),
                None => Ok(()),
            };
            match option {
                "sink" => once(&mut policy.sink)?,
                "window" => once(&mut policy.window)?,
                "skip" => {
                    for layers in rest.split(',') {
                        let (from, to) = layers.split_once('-').unwrap_or((layers, layers));
                        let layers = number(from)?..=number(to)?;
                        if layers.is_empty() {
                            return Err(wrong(format!("+{part} has no layers from {from} to {to}")));
                        }
                        policy.skip.push(layers);
                    }
                }
                _ => return Err(wrong(format!("there is no option +{part}"))),
            }
        }
        let plain = policy.sink.is_none() && policy.window.is_none() && policy.skip.is_empty();
        match plain && keys == F32.name && values == F32.name {
            true => Ok(Self::default()),
            false => Ok(policy),
        }
    }
}

impl fmt::Debug for KvPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for KvPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
