//! The families, one file each.

mod gemma;
mod gemma2;
mod gemma3;
mod gpt_oss;
mod llama;
mod mistral;
mod mistral3;
mod mixtral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen2moe;
mod qwen2vl;
mod qwen3;
mod qwen3moe;
mod qwen3vl;
mod seed_oss;
mod smollm3;

use super::Arch;

pub static ALL: &[&Arch] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &mistral3::MISTRAL3,
    &mixtral::MIXTRAL,
    &smollm3::SMOLLM3,
    &qwen2::QWEN2,
    &qwen2moe::QWEN2MOE,
    &qwen2vl::QWEN2VL,
    &qwen3::QWEN3,
    &qwen3moe::QWEN3MOE,
    &qwen3vl::QWEN3VL,
    &gemma::GEMMA,
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &phi3::PHI3,
    &olmo2::OLMO2,
    &seed_oss::SEED_OSS,
    &gpt_oss::GPT_OSS,
];
