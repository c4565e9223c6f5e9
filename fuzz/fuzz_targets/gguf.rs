//! `RUSTC_BOOTSTRAP=1 cargo fuzz run gguf fuzz/corpus/gguf fuzz/seeds/gguf`

#![no_main]

use libfuzzer_sys::fuzz_target;
use quant::container::gguf::{self, TensorSpec};
use quant::tensor::{Dims, Packed};

fuzz_target!(|file: &[u8]| {
    let Ok(header) = gguf::parse(file) else { return };
    let mut specs = Vec::new();
    for tensor in &header.tensors {
        // What has been accepted lies in the file, and any bytes decode.
        let bytes = &file[tensor.offset..tensor.offset + tensor.bytes];
        let elements: usize = tensor.shape.iter().product();
        if elements <= 1 << 16 {
            let mut values = vec![0.0; elements];
            let cols = tensor.shape[tensor.shape.len() - 1];
            let dims = Dims::new(elements / cols, cols);
            tensor.codec.decode(&Packed::one(dims, bytes), 0..dims.rows, &mut values);
        }
        specs.push(TensorSpec { name: tensor.name.clone(), shape: tensor.shape.clone(), codec: tensor.codec });
    }
    // A copy says the same.
    let Ok(layout) = gguf::layout(&header.metadata, &specs, None) else { return };
    if layout.bytes() > 1 << 24 {
        return;
    }
    let mut copy = layout.shards[0].header.clone();
    copy.resize(layout.bytes() as usize, 0);
    let copy = gguf::parse(&copy).expect("a written header is valid");
    assert!(copy.is_contiguous());
    assert_eq!(copy.tensors.len(), header.tensors.len());
    for (a, b) in copy.tensors.iter().zip(&header.tensors) {
        assert_eq!((&a.name, &a.shape, a.bytes), (&b.name, &b.shape, b.bytes));
    }
});
