//! From a name or a path to a [`Recipe`]: follows `extends` and `use`, and applies `--set`.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::file::{File, Text, activations, find, fp8_cache, target};
use super::presets::{EMBEDDED, PARTS};
use super::rule::{Pattern, Target};
use super::{Budget, Keep, Named, Recipe};
use crate::codec::{self, Codec};
use crate::error::{At, Error, Result};

const MAX_FILE: u64 = 1 << 20;
const MAX_RULES: usize = 4096;
/// Files read for one recipe, repeated ones included.
const MAX_FILES: usize = 256;

/// A preset of `quant list presets`.
#[derive(Clone, Debug)]
pub struct Preset {
    pub name: String,
    pub about: String,
    pub aliases: Vec<String>,
    /// `gguf` or `hf`
    pub container: String,
    /// Bits per weight of the default codec, scales included; `None` where the source decides.
    pub bits_per_weight: Option<f64>,
    /// Its default codec has an encoder.
    pub writable: bool,
}

/// Every preset, in the order of `presets.rs`.
pub fn list() -> Result<Vec<Preset>> {
    let presets = EMBEDDED.iter().filter(|(name, _)| !name.starts_with(PARTS));
    presets
        .map(|(name, _)| {
            let recipe = Recipe::load(name)?;
            let codec = match recipe.default {
                Target::Codec(codec) => Some(codec),
                _ => None,
            };
            let bits_per_weight = recipe.budget.bits.or(codec.and_then(codec::bits_per_weight));
            let writable = codec.is_none_or(codec::is_written);
            let Recipe { name, about, aliases, container, .. } = recipe;
            Ok(Preset { name, about, aliases, container, bits_per_weight, writable })
        })
        .collect()
}

impl Recipe {
    /// A preset by name or alias in any case (`q4_k_m`, `Q4_K_M`, `q4_k`), at an average of bits where it has a ladder
    /// (`exl2-4.25bpw`), or a `.toml` file.
    pub fn load(name_or_path: &str) -> Result<Recipe> {
        Loader::default().load(name_or_path, Some(Path::new("")))
    }

    /// Formats among which a measurement may choose, narrowest first; empty if the recipe says it all.
    pub fn offers(&self) -> &[&'static dyn Codec] {
        if self.budget.offers.is_empty() { &self.budget.ladder } else { &self.budget.offers }
    }

    /// Whether only a measurement tells which formats its weights get.
    pub fn is_open(&self) -> bool {
        !self.offers().is_empty() && self.budget.bits.is_none() && self.named.iter().all(|n| n.set.is_some())
    }

    /// Whether weights that runtimes fuse must have one format.
    pub fn fused(&self) -> bool {
        self.budget.fused
    }

    /// Formats that it names, for whatever weights.
    pub fn formats(&self) -> impl Iterator<Item = &'static dyn Codec> {
        let one = [Some(self.default), self.output, self.token_embd].into_iter().flatten();
        let targets = one.chain(self.named.iter().map(|n| n.target)).chain(self.rules.iter().map(|r| r.target));
        targets.filter_map(|target| if let Target::Codec(codec) = target { Some(codec) } else { None })
    }

    /// The recipe with its narrowest format wherever a measurement may choose.
    pub fn narrowest(&self) -> Recipe {
        let mut out = self.clone();
        out.budget.bits = None;
        out
    }

    /// The recipe under another name, with formats for single tensors.
    pub fn with_formats<'a>(&self, name: &str, formats: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Recipe> {
        let mut out = self.narrowest();
        name.clone_into(&mut out.name);
        for (tensor, format) in formats {
            let pattern = Pattern::parse(&format!("^{}$", regex::escape(tensor)))?;
            out.named.insert(0, Named { pattern, target: target(format)?, set: None });
        }
        Ok(out)
    }

    /// A recipe that is not in a file; it can extend presets only.
    pub fn parse(text: &str) -> Result<Recipe> {
        Loader::default().read(Text { label: "recipe", text }, None)
    }

    /// `--set key=value`. Keys are `default`, `output`, `token_embd`, `kv_cache`, `pure`, `bpw`, `fallback.CODEC`; any other, or `tensors.REGEX`,
    /// is a regular expression that names tensors. The first such expression that matches a tensor decides.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let place = || format!("--set {assignment}");
        let parsed = assignment.rsplit_once('=').ok_or_else(|| Error::request("expected key=value"));
        parsed.and_then(|(key, value)| self.assign(key.trim(), value.trim(), assignment)).at(place)
    }

    fn assign(&mut self, key: &str, value: &str, assignment: &str) -> Result<()> {
        match key {
            "" => return Err(Error::request("expected key=value")),
            "default" => self.default = whole(value)?,
            "output" => self.output = Some(target(value)?),
            "token_embd" => self.token_embd = Some(target(value)?),
            "bpw" if self.budget.ladder.is_empty() => {
                return Err(Error::request("this recipe has no ladder of formats to spend bits on").help("exl2 has"));
            }
            "bpw" => self.budget.bits = Some(Budget::parse(value)?),
            "kv_cache" if self.container == "gguf" => {
                return Err(
                    Error::request("GGUF files say nothing of a cache").help("llama.cpp takes --cache-type-k and -v")
                );
            }
            "kv_cache" => self.fp8_cache = fp8_cache(value)?,
            "pure" => self.pure = value.parse().map_err(|_| Error::request("pure is true or false"))?,
            _ => match key.strip_prefix("fallback.") {
                Some(codec) => self.set_fallback(find(codec)?, whole(value)?),
                None => {
                    let pattern = Pattern::parse(key.strip_prefix("tensors.").unwrap_or(key))?;
                    let named = Named { pattern, target: target(value)?, set: Some(format!("--set {assignment}")) };
                    let earlier = self.named.iter().take_while(|n| n.set.is_some()).count();
                    self.named.insert(earlier, named);
                }
            },
        }
        Ok(())
    }

    fn set_fallback(&mut self, from: &'static dyn Codec, to: Target) {
        self.fallback.retain(|(f, _)| *f != from);
        self.fallback.push((from, to));
    }
}

/// A recipe's own default and its fallbacks cannot be `default`.
fn whole(name: &str) -> Result<Target> {
    match target(name)? {
        Target::Default => Err(Error::request("this must be a codec or \"keep\"")),
        target => Ok(target),
    }
}

#[derive(Default)]
struct Loader {
    /// What is being read: a name that comes up twice extends itself.
    trail: Vec<String>,
    files: usize,
}

impl Loader {
    /// `folder`: where relative paths start; `None` if files may not be read.
    fn load(&mut self, name: &str, folder: Option<&Path>) -> Result<Recipe> {
        self.files += 1;
        if self.files > MAX_FILES {
            return Err(Error::limits(format!("this recipe reads more than {MAX_FILES} files")));
        }
        if let Some((base, bits)) = average(name) {
            let mut recipe = self.load(base, folder)?;
            recipe.set(&format!("bpw={bits}")).map_err(|e| e.at(name.to_owned()))?;
            recipe.name = format!("{}-{bits}bpw", recipe.name);
            return Ok(recipe);
        }
        if !name.ends_with(".toml") {
            let (label, text) = embedded(name)?;
            return self.within(label.to_owned(), |loader| loader.read(Text { label, text }, None));
        }
        let folder = folder.ok_or_else(|| Error::request(format!("{name:?}: only a recipe file can extend a file")))?;
        let path = folder.join(name);
        let text = read_text(&path).map_err(|e| e.at(path.display().to_string()))?;
        let label = path.display().to_string();
        let identity = path.canonicalize().unwrap_or_else(|_| path.clone()).display().to_string();
        let parent = path.parent().map(PathBuf::from).unwrap_or_default();
        let mut recipe =
            self.within(identity, |loader| loader.read(Text { label: &label, text: &text }, Some(&parent)))?;
        if recipe.name.is_empty() {
            recipe.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        }
        Ok(recipe)
    }

    fn within<T>(&mut self, identity: String, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.trail.contains(&identity) {
            let trail = self.trail.join(" -> ");
            return Err(Error::request(format!("a recipe extends itself: {trail} -> {identity}")));
        }
        self.trail.push(identity);
        let result = read(self)?;
        self.trail.pop();
        Ok(result)
    }

    fn read(&mut self, text: Text<'_>, folder: Option<&Path>) -> Result<Recipe> {
        let file = text.parse()?;
        let base = file.extends.as_ref().map(|name| text.read(name, |n| self.load(n, folder))).transpose()?;
        let mut recipe = base.unwrap_or_default();
        recipe.name = file.name.clone().unwrap_or_default();
        recipe.aliases = file.aliases.clone();
        for spanned in &file.rule {
            match &spanned.get_ref().r#use {
                None => recipe.rules.push(text.rule(spanned)?),
                Some(name) if spanned.get_ref().only_uses() => {
                    recipe.rules.extend(text.read(name, |n| self.load(n, folder))?.rules);
                }
                Some(name) => {
                    return Err(Error::request("`use` takes all rules of another file: it stands alone")
                        .at(text.place(name.span())));
                }
            }
            if recipe.rules.len() > MAX_RULES {
                return Err(Error::limits(format!("more than {MAX_RULES} rules")).at(text.label));
            }
        }
        apply(&mut recipe, &file, text)?;
        Ok(recipe)
    }
}

/// Everything but rules: single values replace the base's, lists and tables add to it.
fn apply(recipe: &mut Recipe, file: &File, text: Text<'_>) -> Result<()> {
    if let Some(about) = &file.about {
        recipe.about.clone_from(about);
    }
    if let Some(container) = &file.container {
        recipe.container.clone_from(container);
    }
    if let Some(floats) = &file.floats {
        recipe.floats = Some(text.read(floats, |name| find(name))?);
    }
    if let Some(name) = &file.activations {
        recipe.activations = text.read(name, |name| activations(name))?;
    }
    if let Some(name) = &file.kv_cache {
        recipe.fp8_cache = text.read(name, |name| fp8_cache(name))?;
    }
    let of_folders = [("floats", &file.floats), ("activations", &file.activations), ("kv_cache", &file.kv_cache)];
    let stated = of_folders.iter().find_map(|(key, value)| Some((key, value.as_ref()?)));
    if let Some((key, value)) = stated.filter(|_| recipe.container == "gguf") {
        return Err(Error::request(format!("GGUF files have no {key}"))
            .at(text.place(value.span()))
            .help("container = \"hf\" makes folders, which have"));
    }
    recipe.file_type = file.file_type.or(recipe.file_type);
    recipe.pure = file.pure.unwrap_or(recipe.pure);
    if let Some(default) = &file.default {
        recipe.default = text.read(default, |name| whole(name))?;
    }
    for (own, slot) in [(&file.output, &mut recipe.output), (&file.token_embd, &mut recipe.token_embd)] {
        if let Some(name) = own {
            *slot = Some(text.read(name, |n| target(n))?);
        }
    }
    for codec in &file.importance {
        recipe.importance.push(text.read(codec, |c| find(c))?);
    }
    if let Some(offers) = &file.offers {
        recipe.budget.offers = text.read(offers, |pattern| Budget::ladder(pattern))?;
    }
    if let Some(ladder) = &file.ladder {
        // Offers of a recipe that is extended are for its own ladder.
        if file.offers.is_none() {
            recipe.budget.offers.clear();
        }
        recipe.budget.ladder = text.read(ladder, |pattern| Budget::ladder(pattern))?;
    }
    recipe.budget.bits = file.bpw.or(recipe.budget.bits);
    recipe.budget.fused = file.fused.unwrap_or(recipe.budget.fused);
    for (from, to) in &file.fallback.0 {
        recipe.set_fallback(text.read(from, |f| find(f))?, text.read(to, |t| whole(t))?);
    }
    for keep in &file.keep {
        let pattern = text.read(&keep.names, |n| Pattern::parse(n))?;
        recipe.keep.push(Keep { pattern, arch: keep.arch.list().to_vec(), why: keep.why.clone() });
    }
    let mut named = Vec::new();
    for (regex, codec) in &file.tensors.0 {
        let pattern = text.read(regex, |r| Pattern::parse(r))?;
        named.push(Named { pattern, target: text.read(codec, |c| target(c))?, set: None });
    }
    recipe.named.splice(0..0, named);
    Ok(())
}

/// `exl2-4.25bpw` -> ("exl2", "4.25")
fn average(name: &str) -> Option<(&str, &str)> {
    let (base, bits) = name.strip_suffix("bpw")?.rsplit_once('-')?;
    bits.starts_with(|c: char| c.is_ascii_digit()).then_some((base, bits))
}

fn embedded(name: &str) -> Result<(&'static str, &'static str)> {
    let wanted = name.to_ascii_lowercase();
    let direct = EMBEDDED.iter().find(|(n, _)| *n == wanted);
    let alias = || EMBEDDED.iter().find(|(n, text)| aliases(n, text).contains(&wanted));
    direct.or_else(alias).copied().ok_or_else(|| {
        let known = EMBEDDED.iter().map(|(n, _)| *n).filter(|n| !n.starts_with(PARTS));
        Error::unknown("preset", name, known, "`quant list presets` has all; the name of a recipe file ends in .toml")
    })
}

fn aliases(label: &str, text: &str) -> Vec<String> {
    Text { label, text }.parse().map(|file| file.aliases).unwrap_or_default()
}

fn read_text(path: &Path) -> Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => Error::request("not UTF-8 text"),
        _ => e.into(),
    })?;
    if text.len() as u64 > MAX_FILE {
        return Err(Error::limits("a recipe has at most 1 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gguf_files_have_nothing_of_folders() {
        for text in [
            "floats = \"f16\"",
            "activations = \"static\"",
            "kv_cache = \"fp8\"",
            "extends = \"q4_0\"\nfloats = \"f16\"",
        ] {
            let error = Recipe::parse(text).unwrap_err().to_string();
            assert!(error.contains("GGUF files have no"), "{text}: {error}");
            assert!(Recipe::parse(&format!("container = \"hf\"\n{}", text.replace("q4_0", "w4a16"))).is_ok(), "{text}");
        }
    }
}
