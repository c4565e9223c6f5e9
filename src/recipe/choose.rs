//! Applies a recipe to a model's tensors, in the order in which llama-quantize decides.
//! Source: llama.cpp `src/llama-quant.cpp`.

use super::budget;
use super::kind::{Kind, PER_LAYER_EMBD, order};
use super::rule::{Seen, Target, arch_is};
use super::{ModelFacts, Recipe, Size};
use crate::codec::{self, Codec, Importance};
use crate::error::{self, Error, Result};
use crate::tensor::Dims;

/// A tensor before conversion.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its GGUF name.
    pub name: &'a str,
    /// Outermost first: `[experts, rows, cols]`, `[rows, cols]` or `[n]`.
    pub shape: &'a [usize],
    /// What it stays in if it is kept. For a Hugging Face model: what llama.cpp's converter writes (vectors: f32).
    pub codec: &'static dyn Codec,
}

/// What becomes of one tensor.
#[derive(Clone, Debug)]
pub struct Choice {
    pub name: String,
    /// What it is stored in now; if this is `codec`, its bytes are copied.
    pub source: &'static dyn Codec,
    pub codec: &'static dyn Codec,
    /// The rule, key or default that decided.
    pub reason: String,
    pub fallback: Option<Fallback>,
    /// Why it is not converted, if so.
    pub keeps: Option<String>,
    /// The recipe's budget decides.
    pub open: bool,
    /// Without an importance vector of its own this tensor cannot be encoded, or would be garbage.
    pub needs_importance: bool,
    pub size: Size,
}

/// A codec that the shape rules out.
#[derive(Clone, Debug)]
pub struct Fallback {
    pub wanted: &'static dyn Codec,
    pub because: String,
}

/// A codec for every tensor, in llama-quantize's order, all of them writable with what `facts` promises.
///
/// Errors: as [`select`]; a codec that cannot be encoded; a missing importance matrix.
pub fn choose(recipe: &Recipe, facts: &ModelFacts, sources: &[Source<'_>]) -> Result<Vec<Choice>> {
    let choices = select(recipe, facts, sources)?;
    for choice in choices.iter().filter(|c| c.codec != c.source) {
        if !codec::is_written(choice.codec) {
            return Err(Error::unsupported(format!("{} cannot be written yet", choice.codec.name())).at(&choice.name));
        }
    }
    let mut needy = choices.iter().filter(|c| c.needs_importance && !facts.has_importance);
    if let Some(first) = needy.next() {
        let message = format!("{} needs an importance matrix, and none is given", first.codec.name());
        return Err(Error::request(message).at(format!("{} and {} other tensors", first.name, needy.count())).help(
            "make one with `quant calibrate MODEL --data text.txt -o STATS` and pass --stats STATS, or pass llama.cpp's with --imatrix FILE",
        ));
    }
    Ok(choices)
}

/// [`choose`] without asking whether the result can be written.
///
/// Errors: a shape that neither the codec nor its fallbacks take; a layer that the model does not have; a `--set` that matches nothing.
pub fn select(recipe: &Recipe, facts: &ModelFacts, sources: &[Source<'_>]) -> Result<Vec<Choice>> {
    for set in recipe.named.iter().filter(|n| !sources.iter().any(|s| n.pattern.matches(s.name))) {
        if let Some(typed) = &set.set {
            let message = format!("no tensor's name matches {:?}", set.pattern.text());
            return Err(Error::request(message).at(typed).help(
                "keys are default, output, token_embd, pure, fallback.CODEC and regular expressions such as 'blk\\.0\\.attn_v'",
            ));
        }
    }
    let mut sorted: Vec<_> = sources.iter().collect();
    sorted.sort_by(|a, b| order(a.name, b.name));
    let kinds = || sorted.iter().map(|s| Kind::of(s.name));
    let mut selection = Selection {
        recipe,
        facts,
        tied: !kinds().any(|k| k == Kind::Output),
        attn_v_count: kinds().filter(|k| *k == Kind::AttnV).count(),
        nth: [0; super::KINDS.len()],
    };
    for set in recipe.named.iter().filter(|n| n.set.is_some()) {
        let mut of_it = sources.iter().filter(|s| set.pattern.matches(s.name)).peekable();
        let first = of_it.peek().map_or("", |s| s.name);
        if let (Some(typed), Some(why)) = (&set.set, of_it.map(|s| selection.stays(s)).reduce(Option::and).flatten()) {
            return Err(
                Error::request(format!("it names nothing that is quantized: {first} stays as it is ({why})")).at(typed)
            );
        }
    }
    let mut choices = sorted.iter().map(|source| selection.choice(source)).collect::<Result<Vec<_>>>()?;
    budget::spend(recipe, &sorted, &mut choices)?;
    Ok(choices)
}

/// The reason of weights that nothing names.
const DEFAULT: &str = "default";

struct Selection<'a> {
    recipe: &'a Recipe,
    facts: &'a ModelFacts,
    /// The head is the embedding.
    tied: bool,
    attn_v_count: usize,
    /// How many weights of each kind the rules have seen.
    nth: [usize; super::KINDS.len()],
}

/// A decision before shapes are looked at.
struct Wish {
    target: Target,
    reason: String,
    may_fall_back: bool,
    /// Nothing more particular was said.
    is_default: bool,
}

impl Selection<'_> {
    fn choice(&mut self, source: &Source<'_>) -> Result<Choice> {
        let (planes, dims) = planes(source)?;
        if let Some(why) = self.stays(source) {
            return keep(source, planes, dims, why.clone(), Some(why));
        }
        let Wish { target, reason, may_fall_back, is_default } = self.wish(source, dims)?;
        let wanted = match if target == Target::Default { self.recipe.default } else { target } {
            Target::Codec(codec) => codec,
            _ => return keep(source, planes, dims, reason.clone(), Some(reason)),
        };
        let (target, fallback) = if may_fall_back { self.fit(wanted, dims)? } else { (Target::Codec(wanted), None) };
        let Target::Codec(codec) = target else {
            let why = fallback.as_ref().map_or(reason.clone(), |f| f.because.clone());
            return Ok(Choice { fallback, ..keep(source, planes, dims, reason, Some(why))? });
        };
        let size = size(codec, planes, dims).map_err(|e| e.at(source.name).at(&reason))?;
        let embedding = matches!(Kind::of(source.name), Kind::Output | Kind::TokenEmbd);
        Ok(Choice {
            name: source.name.to_owned(),
            source: source.codec,
            codec,
            reason,
            fallback,
            keeps: None,
            open: !self.recipe.budget.ladder.is_empty() && is_default,
            needs_importance: required(codec) || !embedding && self.recipe.importance.contains(&codec),
            size,
        })
    }

    /// Why a tensor is never converted.
    fn stays(&self, source: &Source<'_>) -> Option<String> {
        if source.shape.iter().skip_while(|&&d| d <= 1).count() < 2 {
            return Some("vector".to_owned());
        }
        if !source.name.ends_with("weight") {
            return Some("not a weight".to_owned());
        }
        let kept =
            self.recipe.keep.iter().find(|k| arch_is(&k.arch, &self.facts.arch) && k.pattern.matches(source.name));
        kept.map(|k| k.why.clone())
    }

    /// What the recipe asks for: explicit types first, then names, then the mix.
    fn wish(&mut self, source: &Source<'_>, dims: Dims) -> Result<Wish> {
        let kind = Kind::of(source.name);
        let named = self.recipe.named.iter().find(|n| n.pattern.matches(source.name));
        let explicit = match kind {
            Kind::TokenEmbd if source.name == PER_LAYER_EMBD && named.is_some() => None,
            Kind::TokenEmbd => self.recipe.token_embd,
            Kind::Output => self.recipe.output,
            _ => None,
        };
        if let Some(target) = explicit {
            return Ok(Wish {
                target,
                reason: format!("explicit type of {}", kind.name()),
                may_fall_back: false,
                is_default: false,
            });
        }
        if let Some(named) = named {
            let reason = named.set.clone().unwrap_or_else(|| format!("[tensors] {}", named.pattern.text()));
            return Ok(Wish { target: named.target, reason, may_fall_back: true, is_default: false });
        }
        if self.recipe.pure {
            return Ok(Wish {
                target: Target::Default,
                reason: DEFAULT.to_owned(),
                may_fall_back: true,
                is_default: true,
            });
        }
        self.mix(source, dims, kind)
    }

    /// The last rule that holds.
    fn mix(&mut self, source: &Source<'_>, dims: Dims, kind: Kind) -> Result<Wish> {
        let tied_head = self.tied && kind == Kind::TokenEmbd;
        let seen = Seen {
            facts: self.facts,
            name: source.name,
            kind: if tied_head { Kind::Output } else { kind },
            stacked: source.shape.iter().rev().nth(2).is_some_and(|&planes| planes > 1),
            tied: self.tied,
            row_fits: concrete(self.recipe.default).is_none_or(|codec| codec.layout(dims).is_ok()),
            nth: self.nth[kind as usize],
            attn_v_count: self.attn_v_count,
        };
        self.nth[kind as usize] += 1;
        if let Some(target) = self.recipe.output.filter(|_| tied_head) {
            let reason = "explicit type of output, tied to token_embd".to_owned();
            return Ok(Wish { target, reason, may_fall_back: true, is_default: false });
        }
        let (mut target, mut reason, mut is_default) = (self.recipe.default, DEFAULT, true);
        for rule in &self.recipe.rules {
            if rule.when.holds(&seen, concrete(target))? {
                is_default = rule.target == Target::Default;
                target = if is_default { self.recipe.default } else { rule.target };
                reason = &rule.text;
            }
        }
        Ok(Wish { target, reason: reason.to_owned(), may_fall_back: true, is_default })
    }

    /// Follows the fallbacks until a codec takes rows of this length, or the weight stays as it is.
    fn fit(&self, wanted: &'static dyn Codec, dims: Dims) -> Result<(Target, Option<Fallback>)> {
        let mut codec = wanted;
        let mut because = None;
        // A chain longer than the table goes in circles.
        for _ in 0..=self.recipe.fallback.len() {
            let misfit = match codec.layout(dims) {
                Ok(_) => return Ok((Target::Codec(codec), because.map(|because| Fallback { wanted, because }))),
                Err(e) if e.kind == error::Kind::Request => e,
                Err(e) => return Err(e),
            };
            let next = self.recipe.fallback.iter().find(|(from, _)| *from == codec);
            let Some(&(_, next)) = next else {
                let help = format!("give a codec that fits: --set fallback.{}=CODEC", codec.name());
                return Err(misfit.help(help));
            };
            let because = because.get_or_insert_with(|| misfit.message().to_owned());
            match next {
                Target::Codec(next) => codec = next,
                _ => return Ok((Target::Keep, Some(Fallback { wanted, because: because.clone() }))),
            }
        }
        Err(Error::request(format!("the fallbacks of {} go in circles", wanted.name())))
    }
}

/// Whether the encoder cannot do without importance.
fn required(codec: &dyn Codec) -> bool {
    codec.block().and_then(|b| b.encode).is_some_and(|e| e.importance == Importance::Required)
}

fn concrete(target: Target) -> Option<&'static dyn Codec> {
    match target {
        Target::Codec(codec) => Some(codec),
        _ => None,
    }
}

fn keep(source: &Source<'_>, planes: usize, dims: Dims, reason: String, keeps: Option<String>) -> Result<Choice> {
    let size = size(source.codec, planes, dims).map_err(|e| e.at(source.name))?;
    Ok(Choice {
        name: source.name.to_owned(),
        source: source.codec,
        codec: source.codec,
        reason,
        fallback: None,
        keeps,
        open: false,
        needs_importance: false,
        size,
    })
}

/// How many matrices there are, and their size.
pub(super) fn planes(source: &Source<'_>) -> Result<(usize, Dims)> {
    let mut inner = source.shape.iter().rev().copied();
    let cols = inner.next().unwrap_or(1);
    let rows = inner.next().unwrap_or(1);
    let planes = inner.try_fold(1usize, |n, d| n.checked_mul(d));
    let fits = |planes: &usize| rows.checked_mul(cols).and_then(|n| n.checked_mul(*planes)).is_some();
    let planes = planes.filter(fits);
    planes
        .map(|planes| (planes, Dims { rows, cols }))
        .ok_or_else(|| Error::input(format!("shape {:?} overflows", source.shape)).at(source.name))
}

pub(super) fn size(codec: &dyn Codec, planes: usize, dims: Dims) -> Result<Size> {
    let bytes = codec.bytes(dims)?.checked_mul(planes);
    let bytes =
        bytes.ok_or_else(|| Error::input(format!("{planes} x {} x {} weights overflow", dims.rows, dims.cols)))?;
    Ok(Size { bytes: bytes as u64, weights: (planes * dims.len()) as u64 })
}
