//! `RUSTC_BOOTSTRAP=1 cargo fuzz run safetensors fuzz/corpus/safetensors fuzz/seeds/safetensors`
//! The first byte says which file of a folder the rest is: `c` config.json, `i` the index, else a safetensors file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quant::container::hf::{self, header, json};

fuzz_target!(|input: &[u8]| {
    let Some((kind, file)) = input.split_first() else { return };
    match kind {
        b'c' => {
            let Ok(config) = json::parse_config(file) else { return };
            let Ok((arch, spec, _)) = hf::interpret(&config) else { return };
            for (_, values) in arch.extra_tensors(&spec) {
                assert!(!values.is_empty());
            }
            assert_eq!(arch.metadata(&spec).str("general.architecture"), Some(arch.name));
        }
        b'i' => {
            let Ok(pairs) = json::parse_index(file) else { return };
            assert!(pairs.iter().all(|(_, shard)| !shard.contains('/') && shard != ".."));
        }
        _ => {
            let Ok(entries) = header::parse(file) else { return };
            let mut end = entries.first().map_or(file.len(), |e| e.bytes.start);
            for e in &entries {
                let bits = e.shape.iter().product::<usize>() * e.dtype.bitsize();
                assert_eq!((e.bytes.start, e.bytes.len() * 8), (end, bits));
                end = e.bytes.end;
            }
            assert_eq!(end, file.len());
        }
    }
});
