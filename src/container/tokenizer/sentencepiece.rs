//! `tokenizer.model`: SentencePiece's protobuf. Source: google/sentencepiece `src/sentencepiece_model.proto`.

use prost::Message;

use crate::error::{Error, Result};

#[derive(Clone, PartialEq, Message)]
pub struct Model {
    #[prost(message, repeated, tag = "1")]
    pub pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    pub trainer: Option<Trainer>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Piece {
    #[prost(string, tag = "1")]
    pub piece: String,
    #[prost(float, tag = "2")]
    pub score: f32,
    /// The same numbers as GGUF's token types; absent is 1, normal.
    #[prost(int32, optional, tag = "3")]
    pub kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Trainer {
    /// 1 unigram, 2 BPE, 3 words, 4 characters.
    #[prost(int32, optional, tag = "3")]
    pub model_type: Option<i32>,
}

const BPE: i32 = 2;

pub fn parse(bytes: &[u8]) -> Result<Model> {
    let model = Model::decode(bytes).map_err(|e| Error::input(format!("it is no SentencePiece model: {e}")));
    let model =
        model.map_err(|e| e.help("if the folder has a tokenizer.json, move tokenizer.model away to use that"))?;
    let kind = model.trainer.as_ref().and_then(|t| t.model_type).unwrap_or(1);
    if model.pieces.is_empty() {
        return Err(Error::input("the SentencePiece model has no pieces"));
    }
    if kind != BPE {
        return Err(Error::unsupported(format!(
            "the SentencePiece model is of kind {kind}; llama.cpp's `llama` tokenizer is BPE"
        )));
    }
    Ok(model)
}
