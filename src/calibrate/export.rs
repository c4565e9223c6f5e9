//! Importance matrices as llama.cpp's tool writes them. Source: llama.cpp `tools/imatrix/imatrix.cpp`.

use std::path::Path;

use super::imatrix::{Entry, Imatrix};
use crate::codec;
use crate::container::gguf::{self, TensorSpec};
use crate::container::output::{Output, publish};
use crate::error::{Error, Result};
use crate::metadata::Metadata;

impl Imatrix {
    /// As GGUF, or for a name that ends in `.dat` in the older format, which knows only means.
    pub fn write(&self, path: &Path) -> Result<()> {
        match path.extension().is_some_and(|e| e.eq_ignore_ascii_case("dat")) {
            true => {
                let output = Output::create(path)?;
                output.write_at(0, &self.legacy()?)?;
                publish(vec![output]).map(|_| ())
            }
            false => self.write_gguf(path),
        }
    }

    fn write_gguf(&self, path: &Path) -> Result<()> {
        let mut metadata = Metadata::default();
        metadata.set("general.type", "imatrix");
        metadata.set("imatrix.datasets", self.datasets.clone());
        metadata.set("imatrix.chunk_count", self.chunk_count);
        metadata.set("imatrix.chunk_size", self.chunk_size);
        let mut tensors = Vec::new();
        for (name, entry) in self.iter() {
            let codec: &'static dyn codec::Codec = &codec::float::F32;
            let planes = entry.planes;
            tensors.push(TensorSpec { name: format!("{name}.in_sum2"), shape: vec![planes, entry.cols], codec });
            tensors.push(TensorSpec { name: format!("{name}.counts"), shape: vec![planes, 1], codec });
        }
        let writer = gguf::create(path, &metadata, &tensors, None, &[], None)?;
        for (i, (_, entry)) in self.iter().enumerate() {
            let counts: Vec<f32> = entry.planes_with_counts().map(|(count, _)| count as f32).collect();
            let sums =
                entry.planes_with_counts().flat_map(|(count, values)| values.iter().map(move |v| sum(*v, count)));
            writer.write_at(2 * i, 0, &bytes(sums))?;
            writer.write_at(2 * i + 1, 0, &bytes(counts))?;
        }
        writer.finish().map(|_| ())
    }

    /// Means times the number of chunks; a plane without data is all ones.
    fn legacy(&self) -> Result<Vec<u8>> {
        let int = |n: usize| {
            i32::try_from(n)
                .map(i32::to_le_bytes)
                .map_err(|_| Error::limits(format!("{n} do not fit the older format")))
        };
        let mut out = Vec::new();
        let entries: Vec<_> = self.iter().filter(|(_, e)| e.planes_with_counts().any(|(count, _)| count > 0)).collect();
        out.extend(int(entries.len())?);
        for (name, entry) in entries {
            let most = entry.planes_with_counts().map(|(count, _)| count).max().unwrap_or(0);
            let calls = most.div_ceil(u64::from(self.chunk_size.max(1)));
            out.extend(int(name.len())?);
            out.extend(name.as_bytes());
            out.extend(int(calls as usize)?);
            out.extend(int(entry.values.len())?);
            out.extend(bytes(entry.values.iter().map(|v| v * calls as f32)));
        }
        out.extend(int(self.chunk_count as usize)?);
        let dataset = self.datasets.first().map_or("", String::as_str);
        out.extend(int(dataset.len())?);
        out.extend(dataset.as_bytes());
        Ok(out)
    }
}

impl Entry {
    /// Tokens and mean squares of every plane.
    fn planes_with_counts(&self) -> impl Iterator<Item = (u64, &[f32])> {
        let count = |i: usize| self.counts.get(i).or(self.counts.first()).copied().unwrap_or(0);
        self.values.chunks_exact(self.cols.max(1)).enumerate().map(move |(i, values)| (count(i), values))
    }
}

/// Zero without tokens, whatever stands for the mean.
fn sum(mean: f32, count: u64) -> f32 {
    (f64::from(mean) * count as f64) as f32
}

fn bytes(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read_back() {
        let mut imatrix = Imatrix::default();
        (imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size) = (vec!["a".into()], 3, 512);
        imatrix.add("blk.0.a.weight".into(), Entry::counted(vec![(1500, vec![1.5, 0.25, 3.0])]));
        imatrix.add("blk.0.b.weight".into(), Entry::counted(vec![(700, vec![2.0, 4.0]), (0, vec![0.0, 0.0])]));
        let dir = tempfile::tempdir().unwrap();
        for (name, planes) in [("x.gguf", 2), ("x.dat", 1)] {
            let path = dir.path().join(name);
            imatrix.write(&path).unwrap();
            let read = Imatrix::open(&path).unwrap();
            assert_eq!(read.entries().collect::<Vec<_>>(), imatrix.entries().collect::<Vec<_>>());
            assert_eq!((read.chunk_count, &read.datasets), (3, &imatrix.datasets));
            assert_eq!(read.get("blk.0.a.weight").unwrap().values, [1.5, 0.25, 3.0]);
            let stacked = read.get("blk.0.b.weight").unwrap();
            assert_eq!((stacked.planes, &stacked.values[..]), (planes, &[2.0, 4.0, 1.0, 1.0][..]));
        }
        assert_eq!(Imatrix::open(&dir.path().join("x.gguf")).unwrap(), imatrix);
    }
}
