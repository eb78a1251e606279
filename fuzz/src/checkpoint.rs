//! Saved networks: bytes that are no file, headers of any JSON, and real files with faults in them. What is refused changes
//! nothing; what is loaded is saved as the same tensors again.

use crate::common::{Map, MapGrad, assert_same, gradients_of, parameters_of};
use crate::input::{Number, Size, Values};
use arbitrary::Arbitrary;
use resblock::{
    Activation, AdamW, Block, Checkpoint, Context, Layer, Linear, SavedOptimizer, Sgd, Skip, Snapshot, Stack,
};

#[derive(Debug, Arbitrary)]
pub struct Case {
    file: Content,
    net: Net,
    /// The network that the file is loaded into has other widths.
    other: Option<Net>,
    values: Values,
}

#[derive(Debug, Arbitrary)]
enum Content {
    Bytes(Vec<u8>),
    Header { json: Vec<u8>, data: Vec<u8>, len: Option<u64> },
    Saved { adam: bool, steps: Vec<Number>, note: Option<String>, faults: Vec<Fault> },
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Net {
    Linear { inputs: Size, outputs: Size, bias: bool },
    Block { width: Size, hidden: Size, bias: bool },
    Blocks { width: Size, hidden: Size, more: u8 },
}

/// Something wrong with a file, most of them in the header, which comes first.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Fault {
    Replace {
        at: u16,
        byte: u8,
    },
    Insert {
        at: u16,
        byte: u8,
    },
    Remove {
        at: u16,
        count: u8,
    },
    Cut {
        at: u32,
    },
    /// Another number where the header has one: a size or an offset.
    Number {
        nth: u8,
        value: u64,
    },
    /// Another length of the header than it has.
    Length(u64),
}

pub fn run(case: &Case) {
    match case.net {
        Net::Linear { inputs, outputs, bias } => {
            case.check(&Linear::new(case.map(0, inputs.0, outputs.0, bias).affine(), Activation::Relu));
        }
        Net::Block { width, hidden, bias } => case.check(&case.block(0, width.0, hidden.0, bias)),
        Net::Blocks { width, hidden, more } => {
            let blocks = (0..1 + u64::from(more % 3)).map(|i| case.block(i, width.0, hidden.0, true)).collect();
            case.check(&Stack::from_blocks(blocks).expect("a stack"));
        }
    }
}

impl Case {
    fn map(&self, stream: u64, inputs: usize, outputs: usize, bias: bool) -> Map {
        let b = bias.then(|| self.values.fill(4 * stream + 1, outputs));
        Map { inputs, outputs, w: self.values.fill(4 * stream, inputs * outputs), b }
    }

    fn block(&self, i: u64, d: usize, h: usize, bias: bool) -> Block {
        let (first, second) = (self.map(2 * i, d, h, bias), self.map(2 * i + 1, h, d, bias));
        Block::new(first.affine(), second.affine(), Activation::Gelu, Skip::Identity).expect("a block")
    }

    fn check<L: Layer + Clone>(&self, layer: &L) {
        let bytes = match &self.file {
            Content::Bytes(bytes) => bytes.clone(),
            Content::Header { json, data, len } => {
                let len = len.unwrap_or(json.len() as u64);
                [&len.to_le_bytes(), &json[..], &data[..]].concat()
            }
            Content::Saved { adam, steps, note, faults } => {
                let saved = if *adam {
                    self.saved(layer, AdamW::new(0.01), steps, note.as_deref())
                } else {
                    self.saved(layer, Sgd::new(0.01, 0.9), steps, note.as_deref())
                };
                let mut bytes = saved;
                for fault in faults.iter().take(8) {
                    fault.apply(&mut bytes);
                }
                bytes
            }
        };
        load(layer, &bytes);
        match self.other {
            None => {}
            Some(Net::Linear { inputs, outputs, bias }) => {
                let map = self.map(9, inputs.0, outputs.0, bias);
                load(&Linear::new(map.affine(), Activation::Identity), &bytes);
            }
            Some(Net::Block { width, hidden, bias }) => load(&self.block(9, width.0, hidden.0, bias), &bytes),
            Some(Net::Blocks { width, hidden, .. }) => {
                let block = self.block(9, width.0, hidden.0, true);
                load(&Stack::from_blocks(vec![block.clone(), block]).expect("a stack"), &bytes);
            }
        }
    }

    /// The file of a network whose optimiser has taken some steps, and that it loads as it was saved.
    fn saved<L: Layer + Clone, O: SavedOptimizer + Clone>(
        &self,
        layer: &L,
        mut optimizer: O,
        steps: &[Number],
        note: Option<&str>,
    ) -> Vec<u8> {
        let (mut layer, fresh) = (layer.clone(), (layer.clone(), optimizer.clone()));
        let ctx = Context::new().expect("a context");
        let maps = (0..layer.affine_count()).filter_map(|i| layer.affine(i));
        let fill = |stream, len| self.values.fill(stream, len);
        let grads = maps.map(|m| MapGrad { dw: fill(50, m.inputs() * m.outputs()), db: fill(51, m.outputs()) });
        let mut grads = gradients_of(&layer, &grads.collect::<Vec<_>>());
        for factor in steps.iter().take(3) {
            grads.scale(&ctx, factor.0);
            optimizer.step(&ctx, &mut layer, &grads).expect("a step");
        }
        let snapshot = Snapshot::with_optimizer(&layer, &optimizer).expect("a snapshot");
        let bytes = note.map_or(snapshot.clone(), |note| snapshot.clone().note(note)).to_bytes().expect("a file");

        let checkpoint = Checkpoint::from_bytes(&bytes).expect("what was saved");
        assert_eq!(checkpoint.note(), note);
        let (mut again, mut resumed) = fresh;
        checkpoint.resume(&mut again, &mut resumed).expect("the same network");
        for (found, want) in parameters_of(&again).iter().zip(&parameters_of(&layer)) {
            assert_eq!(bits(found), bits(want));
        }
        assert_eq!(bytes_of(&again, &resumed), snapshot.to_bytes().expect("a file"));
        let wide = widened(&checkpoint);
        let leftovers = Checkpoint::from_bytes(&wide).expect("a file").restore_partial(&mut again);
        assert_eq!(leftovers.expect("f64 that are f32").missing.len(), 0);
        for (found, want) in parameters_of(&again).iter().zip(&parameters_of(&layer)) {
            assert_same("a parameter", found, want);
        }
        bytes
    }
}

impl Fault {
    fn apply(self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let place = |at: usize| at % len.max(1);
        match self {
            _ if len < 8 => {}
            Fault::Replace { at, byte } => bytes[place(at.into())] = byte,
            Fault::Insert { at, byte } => bytes.insert(place(at.into()), byte),
            Fault::Remove { at, count } => {
                let at = place(at.into());
                drop(bytes.drain(at..(at + usize::from(count)).min(len)));
            }
            Fault::Cut { at } => bytes.truncate(place(at as usize)),
            Fault::Length(value) => bytes[..8].copy_from_slice(&value.to_le_bytes()),
            Fault::Number { nth, value } => {
                let Ok(header) = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))) else {
                    return;
                };
                let end = header.saturating_add(8).min(len);
                let starts = |i: usize| bytes[i].is_ascii_digit() && (i == 8 || matches!(bytes[i - 1], b'[' | b','));
                let all: Vec<usize> = (8..end).filter(|&i| starts(i)).collect();
                if let Some(&at) = all.get(usize::from(nth) % all.len().max(1)) {
                    let digits = bytes[at..end].iter().take_while(|b| b.is_ascii_digit()).count();
                    let text = value.to_string();
                    bytes.splice(at..at + digits, text.bytes());
                    // The header says how long it is: this fault is not about that.
                    let header = (header + text.len() - digits) as u64;
                    bytes[..8].copy_from_slice(&header.to_le_bytes());
                }
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn bytes_of<L: Layer, O: SavedOptimizer>(layer: &L, optimizer: &O) -> Vec<u8> {
    Snapshot::with_optimizer(layer, optimizer).expect("a snapshot").to_bytes().expect("a file")
}

/// The tensors of floats as f64, under the same names.
fn widened(checkpoint: &Checkpoint<'_>) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for tensor in checkpoint.tensors().filter(|tensor| tensor.dtype == "F32") {
        let start = data.len();
        let values = checkpoint.values(tensor.name).expect("floats");
        data.extend(values.into_iter().flat_map(|value| f64::from(value).to_le_bytes()));
        let (name, shape, end) = (tensor.name, tensor.shape, data.len());
        entries.push(format!(r#""{name}":{{"dtype":"F64","shape":{shape:?},"data_offsets":[{start},{end}]}}"#));
    }
    let header = format!("{{{}}}", entries.join(","));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// Looks at all that a file holds, under its own names and others, and loads what fits of it.
fn look<L: Layer + Clone>(start: &L, checkpoint: &Checkpoint<'_>) {
    for tensor in checkpoint.tensors() {
        match checkpoint.values(tensor.name) {
            Ok(values) => assert_eq!(values.len(), tensor.shape.iter().product::<usize>()),
            Err(error) => assert!(!["F32", "F16", "BF16", "F64"].contains(&&tensor.dtype[..]), "{error}"),
        }
    }
    let renamed = |name: &str| name.strip_prefix("blocks.0.").map(str::to_string);
    let mapped = [checkpoint.clone().strip_prefix("blocks.0."), checkpoint.clone().map_names(renamed)];
    for checkpoint in mapped.into_iter().flatten().chain([checkpoint.clone()]) {
        for checkpoint in [checkpoint.clone().ignore_architecture(), checkpoint] {
            let mut layer = start.clone();
            match checkpoint.restore_partial(&mut layer) {
                Ok(leftovers) => {
                    let kept = |name: &String| leftovers.missing.contains(name);
                    let names = layer.parameters().map(|p| p.to_string());
                    for ((name, before), after) in names.zip(parameters_of(start)).zip(parameters_of(&layer)) {
                        assert!(!kept(&name) || bits(&before) == bits(&after), "{name} is missing, and changed");
                    }
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    let (before, after) = (parameters_of(start), parameters_of(&layer));
                    before.iter().zip(&after).for_each(|(before, after)| assert_same("a parameter", after, before));
                }
            }
        }
    }
}

/// Loads any bytes into a network in every way there is.
fn load<L: Layer + Clone>(start: &L, bytes: &[u8]) {
    let checkpoint = match Checkpoint::from_bytes(bytes) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    look(start, &checkpoint);
    let finite = checkpoint.clone().require_finite().is_ok();
    let mut layer = start.clone();
    let result = checkpoint.restore(&mut layer);
    let (before, after) = (parameters_of(start), parameters_of(&layer));
    match result {
        Ok(()) => {
            assert!(!finite || after.iter().flatten().all(|v| v.is_finite()));
            let bytes = Snapshot::new(&layer).to_bytes().expect("a file");
            let mut again = start.clone();
            Checkpoint::from_bytes(&bytes).expect("a file").restore(&mut again).expect("the same network");
            assert_eq!(Snapshot::new(&again).to_bytes().expect("a file"), bytes);
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            before.iter().zip(&after).for_each(|(before, after)| assert_same("a parameter", after, before));
        }
    }
    resume(start, &checkpoint, &Sgd::new(0.5, 0.25));
    resume(start, &checkpoint, &AdamW::new(0.5));
}

fn resume<L: Layer + Clone, O: SavedOptimizer + Clone>(start: &L, checkpoint: &Checkpoint<'_>, fresh: &O) {
    let (mut layer, mut optimizer) = (start.clone(), fresh.clone());
    let result = checkpoint.resume(&mut layer, &mut optimizer);
    let after = bytes_of(&layer, &optimizer);
    if result.is_err() {
        return assert_eq!(after, bytes_of(start, fresh), "a refusal changed something");
    }
    let (mut again, mut optimizer) = (start.clone(), fresh.clone());
    let checkpoint = Checkpoint::from_bytes(&after).expect("what was saved");
    checkpoint.resume(&mut again, &mut optimizer).expect("the same network");
    assert_eq!(bytes_of(&again, &optimizer), after);
}
