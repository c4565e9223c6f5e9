//! The recipes inside the binary. A test compares this list with the `recipes` folder.

macro_rules! embed {
    ($($name:literal)*) => {
        /// Name and text. `parts/` are for `extends` and `use`, the others are presets, widest first.
        pub(super) const EMBEDDED: &[(&str, &str)] =
            &[$(($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/", $name, ".toml")))),*];
    };
}

embed! {
    "copy" "f32" "bf16" "f16"
    "q8_0" "q6_k" "q5_k_m" "q5_k_s" "q5_1" "q5_0"
    "q4_k_m" "q4_k_s" "q4_1" "q4_0" "iq4_nl" "iq4_xs" "mxfp4_moe" "nvfp4-gguf"
    "q3_k_l" "q3_k_m" "q3_k_s" "iq3_m" "iq3_s" "iq3_xs" "iq3_xxs"
    "q2_k" "q2_k_s" "q2_0" "iq2_m" "iq2_s" "iq2_xs" "iq2_xxs" "tq2_0" "tq1_0"
    "iq1_m" "iq1_s" "q1_0"
    "hf-f32" "hf-bf16" "hf-f16"
    "w8a16" "w8a8" "w4a16" "w4a16-asym" "w4a16-g32" "w3a16" "w2a16"
    "fp8" "fp8-block" "fp8-tensor" "modelopt-fp8" "mxfp8" "nvfp4" "nvfp4a16" "modelopt-nvfp4" "nf4" "mxfp4" "mxfp4-gpt-oss"
    "gptq-8bit" "gptq" "gptq-g64" "gptq-g32" "gptq-asym" "gptq-3bit" "gptq-2bit" "awq" "awq-g64" "awq-g32"
    "mlx-8bit" "mlx-mxfp8" "mlx-6bit" "mlx-5bit" "mlx-mixed-4-6" "mlx-nvfp4" "mlx-mxfp4" "mlx-4bit" "mlx-4bit-g32" "mlx-mixed-3-6" "mlx-3bit" "mlx-3bit-g32"
    "mlx-mixed-2-6" "mlx-2bit" "mlx-2bit-g32"
    "exl2" "gguf" "packed"
    "parts/hf" "parts/gptq" "parts/mlx" "parts/llama" "parts/large" "parts/large-q5" "parts/iq-low"
}

pub(super) const PARTS: &str = "parts/";
