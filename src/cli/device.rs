//! `--device`, `--precision` and `--vram` of commands that run models, or choose codes for them.

use clap::Args;

use super::size::Size;
use crate::device::cuda::{Memory, Runner};
use crate::device::{Device, Precision, Worker};
use crate::error::{Error, Result};

#[derive(Args)]
pub struct DeviceArgs {
    /// Where it is computed: cpu, cuda:N, or auto for a card if there is one that can do what is asked
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: Device,
    /// How a card multiplies, and factors: exact (kernels whose sums are the CPU's, and so are all codes), or by cuBLAS and cuSOLVER, which
    /// are many times as fast: f32, tf32 (what is multiplied is rounded to 11 bits), bf16 (to 8) [default: tf32 where cuBLAS is found,
    /// else exact]
    #[arg(long, value_name = "HOW")]
    precision: Option<Precision>,
    /// Allocate at most so much of the card's memory, beside what its driver and NVIDIA's libraries take for themselves; text goes
    /// through in smaller batches, larger weights in parts [default: all that is free]
    #[arg(long, value_name = "SIZE")]
    vram: Option<Size>,
}

/// The device that was asked for, opened.
pub struct Place {
    asked: Device,
    card: Option<(Memory<'static>, String)>,
}

impl DeviceArgs {
    /// `refused`: what among the other arguments no card does.
    ///
    /// Errors: a card was asked for by name, and cannot be had or cannot do it.
    pub fn open(&self, refused: Option<&str>) -> Result<Place> {
        let asked = self.device;
        if let (Device::Cpu, Some(precision)) = (asked, self.precision) {
            return Err(Error::request(format!(
                "--precision {precision} is for a card, and all is computed on the CPU"
            ))
            .help("pass --device cuda:0 too"));
        }
        match (asked, refused) {
            (Device::Cpu, _) if self.vram.is_some() => {
                return Err(Error::request("--vram bounds a card's memory, and all is computed on the CPU")
                    .help("pass --device cuda:0 too"));
            }
            (Device::Cuda(_), Some(what)) => {
                return Err(Error::unsupported(format!("no card runs {what}")).help("use --device cpu, or auto"));
            }
            (Device::Auto, Some(_)) => return Ok(Place { asked, card: None }),
            _ => {}
        }
        let limit = self.vram.map(|size| usize::try_from(size.0).unwrap_or(usize::MAX));
        let card = asked.open(self.precision)?.map(|card| {
            let name = format!("cuda:{} ({}, {})", card.info.index, card.info.name, card.precision());
            Memory::new(card, limit).map(|memory| (memory, name))
        });
        match card.transpose() {
            Err(_) if asked == Device::Auto => Ok(Place { asked, card: None }),
            card => Ok(Place { asked, card: card? }),
        }
    }
}

impl Place {
    /// What computes, and its name.
    pub fn worker(&self) -> (Worker<'_>, &str) {
        self.card.as_ref().map_or((Worker::Cpu, "cpu"), |(memory, name)| (Worker::Card(memory), name))
    }

    /// What `build` makes for the device, and the device's name: the CPU's too where the card cannot and `auto` was asked for.
    pub fn choose<'a, T>(&'a self, build: impl Fn(Worker<'a>) -> Result<T>) -> Result<(T, &'a str)> {
        if let Some((memory, name)) = &self.card {
            match build(Worker::Card(memory)) {
                Err(_) if self.asked == Device::Auto => {}
                made => return Ok((made?, name)),
            }
        }
        Ok((build(Worker::Cpu)?, "cpu"))
    }
}
