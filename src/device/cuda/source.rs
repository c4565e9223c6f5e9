//! The sources in `kernels/`, and the facts that are printed in front of them: what is compiled for a card, and by tests for the host.

use std::fmt::Write;

use crate::codec::facts::Number;
use crate::codec::grid::Levels;
use crate::codec::{self, DeviceGrid, affine, awq, fp4, fp8, ggml};
use crate::device::cpu;
use crate::error::{Error, Kind, Result};

/// A file in `kernels/` with entry points.
#[derive(Debug)]
pub struct Op {
    pub name: &'static str,
    text: &'static str,
    /// Headers that it uses.
    headers: &'static [&'static str],
    takes: Takes,
}

/// What an op is compiled for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Takes {
    Nothing,
    /// `-DGRID=`: any format, or one that is a block with an encoder.
    Grid,
    Block,
    /// `-DLEVELS=`
    Levels,
    /// `-DHEAD_DIM=`
    HeadDim,
}

macro_rules! kernels {
    ($file:literal) => {
        include_str!(concat!("../../../kernels/", $file))
    };
}

const LANGUAGE: &str = kernels!("language.cuh");
const COMMON: &str = kernels!("common.cuh");
const PRODUCT: &str = kernels!("product.cuh");
const REDUCE: &str = kernels!("reduce.cuh");

static OPS: &[Op] = &[
    op("decode", kernels!("decode.cu"), &[], Takes::Grid),
    op("encode", kernels!("encode.cu"), &[], Takes::Block),
    op("solve", kernels!("solve.cu"), &[PRODUCT], Takes::Levels),
    op("fit", kernels!("fit.cu"), &[], Takes::Nothing),
    op("factor", kernels!("factor.cu"), &[], Takes::Nothing),
    op("judge", kernels!("judge.cu"), &[REDUCE], Takes::Nothing),
    op("product", kernels!("product.cu"), &[PRODUCT], Takes::Nothing),
    op("gram", kernels!("gram.cu"), &[PRODUCT], Takes::Nothing),
    op("moments", kernels!("moments.cu"), &[], Takes::Nothing),
    op("layer", kernels!("layer.cu"), &[REDUCE], Takes::Nothing),
    op("attention", kernels!("attention.cu"), &[], Takes::HeadDim),
    op("scores", kernels!("scores.cu"), &[REDUCE], Takes::Nothing),
];

const fn op(name: &'static str, text: &'static str, headers: &'static [&'static str], takes: Takes) -> Op {
    Op { name, text, headers, takes }
}

/// The files in `kernels/grid`, by the names that [`DeviceGrid::file`] has.
static GRIDS: &[(&str, &str)] = &[
    ("block", kernels!("grid/block.cuh")),
    ("search", kernels!("grid/search.cuh")),
    ("simple", kernels!("grid/simple.cuh")),
    ("k", kernels!("grid/k.cuh")),
    ("iq4", kernels!("grid/iq4.cuh")),
    ("fp4", kernels!("grid/fp4.cuh")),
    ("fp8", kernels!("grid/fp8.cuh")),
    ("coded", kernels!("grid/coded.cuh")),
    ("affine", kernels!("grid/affine.cuh")),
];

/// Heads that models have.
pub const HEAD_DIMS: &[usize] = &[64, 80, 96, 128, 256];

/// One op compiled for one of its choices.
#[derive(Clone, Debug)]
pub struct Unit {
    op: &'static Op,
    /// The choice: a macro and what it stands for.
    pub define: Option<(&'static str, String)>,
    /// The choice as an identifier.
    choice: String,
    /// Its file in `kernels/grid`.
    file: Option<&'static str>,
}

/// What files in `kernels/grid` build on.
const BLOCK_FILES: &[&str] = &["block", "search"];

impl Unit {
    fn plain(name: &str) -> Result<Unit> {
        let op = OPS.iter().find(|op| op.name == name);
        let op = op.ok_or_else(|| Error::new(Kind::Device, format!("no kernel is called {name}")))?;
        Ok(Unit { op, define: None, choice: String::new(), file: None })
    }

    /// An op without choices.
    pub fn of(name: &str) -> Result<Unit> {
        Unit::plain(name)
    }

    pub fn of_grid(name: &str, grid: &DeviceGrid) -> Result<Unit> {
        let define = Some(("GRID", grid.expression()));
        Ok(Unit { define, choice: grid.id(), file: Some(grid.file), ..Unit::plain(name)? })
    }

    /// The solver for one kind of levels.
    pub fn of_levels(levels: Levels) -> Result<Unit> {
        let (text, choice) = match levels {
            Levels::Integers { .. } => ("Integers".to_owned(), "integers".to_owned()),
            Levels::E4m3 => ("E4m3".to_owned(), "e4m3".to_owned()),
            Levels::Table(_) => {
                let grid = grids().into_iter().find(|g| g.levels == levels);
                let grid =
                    grid.ok_or_else(|| Error::new(Kind::Device, "these levels are not known to kernels/grid"))?;
                (format!("Table<FactsOf{}>", grid.name), grid.name.to_owned())
            }
        };
        Ok(Unit { define: Some(("LEVELS", text)), choice, ..Unit::plain("solve")? })
    }

    pub fn of_head_dim(head_dim: usize) -> Result<Unit> {
        let text = head_dim.to_string();
        Ok(Unit { define: Some(("HEAD_DIM", text.clone())), choice: text, ..Unit::plain("attention")? })
    }

    /// `decode.BlockQ4_0`
    pub fn name(&self) -> String {
        if self.choice.is_empty() { self.op.name.to_owned() } else { format!("{}.{}", self.op.name, self.choice) }
    }

    /// How NVRTC is asked to compile it: nothing is fused that the source does not say, so that codes are the CPU's.
    pub fn options(&self, arch: &str) -> Vec<String> {
        let mut out = vec![format!("--gpu-architecture={arch}"), "--fmad=false".to_owned(), "--std=c++17".to_owned()];
        out.extend(self.define.iter().map(|(name, value)| format!("-D{name}={value}")));
        out
    }

    /// Its entry points.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> {
        let name = |line: &'static str| {
            let bounded = || Some(line.strip_prefix("KERNEL_OF(")?.split_once(") ")?.1);
            line.strip_prefix("KERNEL ").or_else(bounded)?.split('(').next()
        };
        self.op.text.lines().filter_map(name)
    }

    /// The op's own text with its headers.
    pub fn body(&self) -> String {
        self.op.headers.iter().chain([&self.op.text]).copied().collect()
    }

    /// All that is compiled.
    pub fn source(&self) -> String {
        let used = |name: &&str| self.file.is_some_and(|file| BLOCK_FILES.contains(name) || file == *name);
        let grids = GRIDS.iter().filter(|(name, _)| used(name));
        let grids: String = grids.map(|(_, text)| *text).collect();
        format!("{}{grids}{}", prelude(), self.body())
    }
}

/// Every unit that some format or model asks for.
pub fn units() -> Result<Vec<Unit>> {
    let grids = grids();
    let mut levels: Vec<Levels> = Vec::new();
    for codec in codec::all() {
        let Some(grid) = codec.grid() else { continue };
        let kind = match grid.levels() {
            Levels::Integers { .. } => Levels::Integers { first: 0, count: 1 },
            other => other,
        };
        if !levels.contains(&kind) {
            levels.push(kind);
        }
    }
    let mut out = Vec::new();
    for op in OPS {
        match op.takes {
            Takes::Nothing => out.push(Unit::of(op.name)?),
            Takes::Grid => out.extend(grids.iter().map(|g| Unit::of_grid(op.name, g)).collect::<Result<Vec<_>>>()?),
            Takes::Block => {
                let blocks = grids.iter().filter(|g| g.block);
                out.extend(blocks.map(|g| Unit::of_grid(op.name, g)).collect::<Result<Vec<_>>>()?);
            }
            Takes::Levels => out.extend(levels.iter().map(|l| Unit::of_levels(*l)).collect::<Result<Vec<_>>>()?),
            Takes::HeadDim => out.extend(HEAD_DIMS.iter().map(|d| Unit::of_head_dim(*d)).collect::<Result<Vec<_>>>()?),
        }
    }
    Ok(out)
}

/// The structs of all formats that have one, each once.
pub fn grids() -> Vec<DeviceGrid> {
    let mut out: Vec<DeviceGrid> = Vec::new();
    for facts in codec::all().filter_map(|c| c.facts()) {
        if !out.iter().any(|g| g.id() == facts.grid.id()) {
            out.push(facts.grid);
        }
    }
    out
}

/// `kernels/grid`, all of it.
pub fn grid_files() -> String {
    GRIDS.iter().map(|(_, text)| *text).collect()
}

/// The language, the numbers, and the facts of every format: what all units begin with.
pub fn prelude() -> String {
    let mut out = format!("{LANGUAGE}\n");
    let shift: Vec<i32> = awq::SHIFT.iter().map(|s| *s as i32).collect();
    let own = [
        ("AWQ_SHIFT", Number::Ints(shift)),
        ("FP8_MAX", Number::Float(fp8::MAX)),
        ("LARGEST_FLOAT", Number::Float(f32::MAX)),
    ];
    for (name, number) in own
        .into_iter()
        .chain(cpu::numbers())
        .chain(affine::numbers())
        .chain(fp4::numbers())
        .chain(ggml::encode::numbers())
    {
        constant(&mut out, name, &number);
    }
    out += "\n";
    out += COMMON;
    for grid in grids().into_iter().filter(|g| g.arguments.is_empty()) {
        facts(&mut out, &grid);
    }
    out + "\n"
}

fn constant(out: &mut String, name: &str, number: &Number) {
    let list = |items: Vec<String>| items.join(", ");
    let line = match number {
        Number::Int(n) => format!("constexpr int {name} = {n};"),
        Number::Float(x) => format!("constexpr float {name} = {x:e}f;"),
        Number::Ints(n) => format!("CONSTANT int {name}[] = {{{}}};", list(n.iter().map(i32::to_string).collect())),
        Number::Floats(x) => {
            format!("CONSTANT float {name}[] = {{{}}};", list(x.iter().map(|x| format!("{x:e}f")).collect()))
        }
    };
    out.push_str(&line);
    out.push('\n');
}

/// `FactsOfX`, which the struct X in `kernels/grid` begins with.
fn facts(out: &mut String, grid: &DeviceGrid) {
    let name = grid.name;
    out.push('\n');
    let level = match grid.levels {
        Levels::Integers { first, .. } => format!("float(code + {first})"),
        Levels::Table(levels) => {
            constant(out, &format!("LEVELS_OF_{name}"), &Number::Floats(levels.to_vec()));
            format!("LEVELS_OF_{name}[code]")
        }
        Levels::E4m3 => "e4m3(u32(code))".to_owned(),
    };
    let mut numbers: Vec<String> = grid.numbers.iter().map(|(name, n)| format!("{name} = {n}")).collect();
    numbers.push(format!("COUNT = {}", grid.levels.count()));
    // Writing to a string does not fail.
    let _ = writeln!(
        out,
        "struct FactsOf{name} {{\n    enum : int {{ {} }};\n    static FN float level(int code) {{ return {level}; }}\n}};",
        numbers.join(", ")
    );
}
