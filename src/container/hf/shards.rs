//! The safetensors files of a folder: which there are, mapped into memory, every tensor found once.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::header::{self, Entry};
use super::json;
use crate::container::Raw;
use crate::error::{At, Error, Result};

pub const INDEX: &str = "model.safetensors.index.json";
pub const SINGLE: &str = "model.safetensors";
/// What exllamav2 calls the only file.
pub const OUTPUT: &str = "output.safetensors";

/// A mapped file. Its header has been checked.
pub struct Shard {
    pub file: String,
    pub path: PathBuf,
    pub map: Mmap,
}

/// A tensor and the shard that holds it.
#[derive(Clone)]
pub struct Located {
    pub shard: usize,
    pub entry: Entry,
}

impl Located {
    pub fn raw<'a>(&'a self, shards: &'a [Shard]) -> Raw<'a> {
        let Entry { name, dtype, shape, bytes } = &self.entry;
        Raw { name, dtype: *dtype, shape, bytes: &shards[self.shard].map[bytes.clone()] }
    }
}

/// Opens every shard of a folder. The tensors come in file order, each name once.
pub fn open(dir: &Path) -> Result<(Vec<Shard>, Vec<Located>)> {
    let index = json::index(dir, INDEX)?;
    let files = match &index {
        Some(pairs) => named_by(pairs),
        None => find(&listing(dir)?)?,
    };
    let (mut shards, mut tensors) = (Vec::new(), Vec::new());
    for (n, file) in files.into_iter().enumerate() {
        let shard = map(dir, &file, index.is_some())?;
        let entries = header::parse(&shard.map).at(|| &file)?;
        tensors.extend(entries.into_iter().map(|entry| Located { shard: n, entry }));
        shards.push(shard);
    }
    let found = unique(&shards, &tensors)?;
    if let Some(pairs) = &index {
        agree(pairs, &found)?;
    }
    Ok((shards, tensors))
}

/// The weight files among `names`: those of the index in `dir`, if it has one.
pub fn files(dir: &Path, names: &[String]) -> Result<Vec<String>> {
    match json::index(dir, INDEX)? {
        Some(pairs) => Ok(named_by(&pairs)),
        None => find(names),
    }
}

fn named_by(pairs: &[(String, String)]) -> Vec<String> {
    let mut files: Vec<_> = pairs.iter().map(|(_, shard)| shard.clone()).collect();
    files.sort();
    files.dedup();
    files
}

fn map(dir: &Path, file: &str, indexed: bool) -> Result<Shard> {
    let path = dir.join(file);
    let meta = std::fs::metadata(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound if indexed => {
            Error::input(format!("the index names shard {file}, which is not there"))
                .at(INDEX)
                .help("download the missing shard")
        }
        _ => Error::from(e).at(path.display().to_string()),
    })?;
    // Opening a pipe would wait for its writer.
    if !meta.is_file() {
        return Err(Error::input("not a file").at(file));
    }
    if meta.len() == 0 {
        // An empty file cannot be mapped; the header's own check says what is wrong.
        header::parse(&[]).at(|| file)?;
    }
    // SAFETY: the map is private and only read. Another process that cuts the file short while it is mapped makes reads
    // fault, as for every program that maps its models.
    let map = unsafe { Mmap::map(&File::open(&path).at(|| path.display().to_string())?) }
        .at(|| path.display().to_string())?;
    Ok(Shard { file: file.to_owned(), path, map })
}

/// Where each tensor is; a name in two shards is an error.
fn unique<'a>(shards: &'a [Shard], tensors: &'a [Located]) -> Result<HashMap<&'a str, &'a str>> {
    let mut found = HashMap::with_capacity(tensors.len());
    for t in tensors {
        let file = shards[t.shard].file.as_str();
        if let Some(other) = found.insert(t.entry.name.as_str(), file) {
            return Err(Error::input(format!("also in {other}"))
                .at(&t.entry.name)
                .at(file)
                .help("shards of different downloads are mixed: empty the folder and download the model again"));
        }
    }
    Ok(found)
}

/// The index and the shards say the same.
fn agree(pairs: &[(String, String)], found: &HashMap<&str, &str>) -> Result<()> {
    const MIXED: &str = "index and shards are of different downloads: download both again";
    for (tensor, file) in pairs {
        match found.get(tensor.as_str()) {
            Some(actual) if actual == file => {}
            Some(actual) => {
                let message = format!("the index puts it in {file}, but it lies in {actual}");
                return Err(Error::input(message).at(tensor).at(INDEX).help(MIXED));
            }
            None => {
                let message = format!("the index puts it in {file}, which does not hold it");
                return Err(Error::input(message).at(tensor).at(INDEX).help(MIXED));
            }
        }
    }
    if pairs.len() < found.len() {
        let listed: HashSet<_> = pairs.iter().map(|(tensor, _)| tensor.as_str()).collect();
        let extra = found.iter().filter(|(tensor, _)| !listed.contains(*tensor)).min();
        if let Some((tensor, file)) = extra {
            return Err(Error::input("the index does not list this tensor").at(*tensor).at(*file).help(MIXED));
        }
    }
    Ok(())
}

pub fn listing(dir: &Path) -> Result<Vec<String>> {
    let place = || dir.display().to_string();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).at(place)? {
        names.extend(entry.at(place)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// The weight files of a folder without an index.
fn find(names: &[String]) -> Result<Vec<String>> {
    if let Some(single) = [SINGLE, OUTPUT].into_iter().find(|single| names.iter().any(|n| n == single)) {
        return Ok(vec![single.to_owned()]);
    }
    let shards: Vec<_> = names.iter().filter_map(|n| Some((n, shard_of(n)?))).collect();
    let Some((_, (prefix, _, count))) = shards.first() else { return Err(no_weights(names)) };
    // A complete set: one prefix, one count, every number from 1.
    for (n, (other, number, total)) in &shards {
        if (other, total) != (prefix, count) || *number == 0 || number > total {
            return Err(Error::input(format!("{n} is not of the same set of shards as {}", shards[0].0))
                .help(format!("add {INDEX}, which says what belongs together")));
        }
    }
    let missing = (1..=*count).find(|i| !shards.iter().any(|(_, (_, number, _))| number == i));
    if let Some(i) = missing {
        return Err(Error::input(format!("shard {i} of {count} is missing")).help("download the missing shard"));
    }
    Ok(shards.into_iter().map(|(n, _)| n.clone()).collect())
}

/// `model-00002-of-00004.safetensors` -> ("model", 2, 4)
fn shard_of(name: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| s.len() >= 5 && s.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(count)).then_some(())?;
    Some((prefix, number.parse().ok()?, count.parse().ok()?))
}

/// What the folder holds instead, and the way out.
pub fn no_weights(names: &[String]) -> Error {
    let row = INSTEAD.iter().find_map(|(ours, what, help)| Some((names.iter().find(|n| ours(n))?, what, help)));
    match row {
        Some((name, what, help)) => {
            Error::unsupported(format!("no {SINGLE}: the folder has {what}: {name}")).help(*help)
        }
        None => Error::input(format!("no {SINGLE}, no shards and no {INDEX} in the folder"))
            .help("pass a folder as Hugging Face publishes it, a GGUF file or hf:org/name"),
    }
}

type Instead = (fn(&str) -> bool, &'static str, &'static str);
const INSTEAD: &[Instead] = &[
    (
        |n| n.starts_with("adapter_model."),
        "a LoRA adapter",
        "merge it into its base model first: `PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(...)`",
    ),
    (
        |n| n.starts_with("consolidated") && n.ends_with(".safetensors"),
        "weights under their vendor's own names",
        "download the Hugging Face layout of this model (model-*.safetensors)",
    ),
    (|n| n.ends_with(".gguf"), "GGUF files", "pass that file itself"),
    (
        |n| n.ends_with(".bin") || n.ends_with(".pt") || n.ends_with(".pth"),
        "PyTorch files only (pytorch_model.bin), which can run code when loaded",
        "convert it to safetensors: python -c \"from transformers import AutoModelForCausalLM as M; \
         M.from_pretrained('FOLDER', dtype='auto').save_pretrained('OUT')\", and copy the tokenizer files",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names() {
        assert_eq!(shard_of("model-00002-of-00004.safetensors"), Some(("model", 2, 4)));
        assert_eq!(shard_of("a-b-00001-of-00001.safetensors"), Some(("a-b", 1, 1)));
        for other in [
            "model.safetensors",
            "model-1-of-2.safetensors",
            "model-0000x-of-00002.safetensors",
            "x-00001-of-00002.bin",
        ] {
            assert_eq!(shard_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_set_of_shards_is_complete() {
        let names = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let (a, b) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        assert_eq!(find(&names(&["config.json", a, b])).unwrap(), [a, b]);
        assert!(find(&names(&[b])).unwrap_err().to_string().contains("shard 1 of 2 is missing"));
        assert!(find(&names(&[a, b, "other-00001-of-00001.safetensors"])).is_err());
        assert_eq!(find(&names(&[a, SINGLE])).unwrap(), [SINGLE]);
    }
}
