//! What a file that no container opens probably is.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// First bytes, what starts with them, and what to do about it.
static KNOWN: &[(&[u8], &str, &str)] = &[
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "download the file with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive, as PyTorch's .bin, .pt and .pth files are", PICKLE),
    (b"\x80\x02", "a Python pickle, as old PyTorch files are", PICKLE),
    (b"\x80\x04", "a Python pickle", PICKLE),
    (b"\x80\x05", "a Python pickle", PICKLE),
    (b"tjgg", "a GGJT file, which came before GGUF", OLD_GGML),
    (b"fmgg", "a GGMF file, which came before GGUF", OLD_GGML),
    (b"lmgg", "a GGML file, which came before GGUF", OLD_GGML),
    (b"\x93NUMPY", "a NumPy array", "name the model's folder, the one with config.json"),
    (b"\x89HDF", "an HDF5 file, as Keras writes", "convert it to safetensors first"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
    (b"<!DOCTYPE", "a web page: the download went wrong", "download the file again"),
    (b"<html", "a web page: the download went wrong", "download the file again"),
    (b"{", "a JSON file", "name the model's folder, the one with config.json"),
];

const PICKLE: &str = "pickles can run code, so they are not read: convert it to safetensors first";
const OLD_GGML: &str = "convert the original model again with today's tools";

/// Up to 64 bytes from the start of a file.
pub fn first_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a file that starts so is, and what to do about it.
pub fn guess(first: &[u8]) -> Option<(&'static str, &'static str)> {
    if first.get(8) == Some(&b'{') {
        return Some(("a single safetensors file", "name the model's folder, the one with config.json"));
    }
    KNOWN.iter().find(|(start, ..)| first.starts_with(start)).map(|(_, what, help)| (*what, *help))
}

/// Why nothing opens `path`, which exists.
pub fn explain(path: &Path) -> Error {
    if path.is_dir() {
        return folder(path);
    }
    let first = match first_bytes(path) {
        Ok(first) => first,
        Err(e) => return e,
    };
    match guess(&first) {
        _ if first.is_empty() => Error::input("the file is empty").help("download or convert it again"),
        Some((what, help)) => Error::unsupported(format!("not a model: this is {what}")).help(help),
        None => Error::unsupported("neither a GGUF file nor a Hugging Face folder")
            .help("name a folder with config.json and *.safetensors, or a .gguf file"),
    }
}

fn folder(path: &Path) -> Error {
    let mut gguf: Vec<_> = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".gguf"))
        .collect();
    gguf.sort();
    let error = Error::request("this folder is not a model: it has no config.json");
    match gguf.first() {
        Some(name) => error.help(format!("name a file in it: {name}")),
        None => error.help("name a folder with config.json and *.safetensors, or a .gguf file"),
    }
}
