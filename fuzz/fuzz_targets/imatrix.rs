//! `RUSTC_BOOTSTRAP=1 cargo fuzz run imatrix fuzz/corpus/imatrix fuzz/seeds/imatrix`

#![no_main]

use libfuzzer_sys::fuzz_target;
use quant::calibrate::imatrix::Imatrix;

fuzz_target!(|file: &[u8]| {
    let Ok(imatrix) = Imatrix::parse(file) else { return };
    for name in imatrix.entries() {
        let entry = imatrix.get(name).expect("listed names are found");
        assert_eq!(entry.values.len(), entry.planes * entry.cols);
        assert!(entry.values.iter().all(|v| v.is_finite() && *v >= 0.0));
        assert!(entry.plane(0, entry.planes, entry.cols).is_ok());
    }
    for (_, value) in imatrix.metadata("file") {
        assert!(value.as_str().is_none_or(|s| s.len() <= 127));
    }
});
