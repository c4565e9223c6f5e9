//! Bits where they count: what each weight costs in each format, measured by what it does to the model's answers, and the
//! mix that loses least within a size.

mod blame;
mod choices;
mod damage;
pub mod exllamav2;
mod knapsack;
mod measure;
mod mix;
mod overlay;

pub use blame::Pair;
pub use choices::Choices;
pub use damage::{Variant, damages};
pub use measure::{Job, Measured, Measurement, Offer, measure};
pub use mix::{Goal, Mixed, mix, together};
pub use overlay::{Overlay, Patch};
