//! How deep the schema of a Parquet file nests, read off its footer before the Parquet library recurses over it.
//! Source: parquet-format `parquet.thrift` (FileMetaData, SchemaElement), Thrift compact protocol.

const STOP: u8 = 0;
const BOOLS: [u8; 2] = [1, 2];
const BYTE: u8 = 3;
const INTEGERS: [u8; 3] = [4, 5, 6];
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LISTS: [u8; 2] = [9, 10];
const MAP: u8 = 11;
const STRUCT: u8 = 12;
const UUID: u8 = 13;

/// Structures inside structures that are skipped over; the format itself needs five.
const MAX_SKIP: usize = 32;

/// Levels of groups and columns below the root; `None` if the footer is damaged.
pub fn depth(file: &[u8]) -> Option<usize> {
    let (rest, tail) = file.split_last_chunk::<8>()?;
    let length = u32::from_le_bytes(*tail.first_chunk()?) as usize;
    let mut footer = Thrift(&rest[rest.len().checked_sub(length)?..]);
    let mut deepest = 0;
    let mut field = 0;
    while let Some(kind) = footer.field(&mut field)? {
        match (field, kind) {
            (2, 9) => deepest = deepest.max(footer.schema()?),
            _ => footer.skip(kind, MAX_SKIP)?,
        }
    }
    Some(deepest)
}

struct Thrift<'a>(&'a [u8]);

impl Thrift<'_> {
    /// A list of elements in depth-first order, each with the number of its children.
    fn schema(&mut self) -> Option<usize> {
        let (count, kind) = self.list()?;
        let mut pending: Vec<u64> = Vec::new(); // children still to come, from the root down
        let mut deepest = 0;
        for _ in 0..count {
            let children = if kind == STRUCT { self.children()? } else { return None };
            deepest = deepest.max(pending.len());
            if let Some(left) = pending.last_mut() {
                *left -= 1; // never 0: such levels are popped below
            }
            pending.push(children);
            while pending.last() == Some(&0) {
                pending.pop();
            }
        }
        Some(deepest)
    }

    /// `num_children` of a SchemaElement; 0 for a column.
    fn children(&mut self) -> Option<u64> {
        let (mut children, mut field) = (0, 0);
        while let Some(kind) = self.field(&mut field)? {
            match (field, kind) {
                (5, 5) => children = self.varint()? >> 1, // zigzag: positive numbers are even
                _ => self.skip(kind, MAX_SKIP)?,
            }
        }
        Some(children)
    }

    /// The next field's kind, its number in `id`; `Some(None)` at the end of the structure.
    fn field(&mut self, id: &mut i64) -> Option<Option<u8>> {
        let head = self.byte()?;
        if head == STOP {
            return Some(None);
        }
        *id = match head >> 4 {
            0 => {
                let zigzag = self.varint()?;
                (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)
            }
            step => id.checked_add(step.into())?,
        };
        Some(Some(head & 15))
    }

    /// (count, kind) of a list's elements, every one of which takes at least a byte.
    fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { (head >> 4).into() };
        (count <= self.0.len() as u64).then_some((count, head & 15))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind {
            k if BOOLS.contains(&k) => Some(()), // a field's value is its kind
            BYTE => self.byte().map(|_| ()),
            k if INTEGERS.contains(&k) => self.varint().map(|_| ()),
            DOUBLE => self.bytes(8),
            UUID => self.bytes(16),
            BINARY => {
                let length = self.varint()?;
                self.bytes(length)
            }
            k if LISTS.contains(&k) => {
                let (count, kind) = self.list()?;
                (0..count).try_for_each(|_| self.skip_element(kind, depth))
            }
            MAP => {
                let count = self.varint()?;
                if count == 0 {
                    return Some(());
                }
                let kinds = self.byte()?;
                let pairs = 0..(count <= self.0.len() as u64).then_some(count)?;
                pairs.into_iter().try_for_each(|_| {
                    self.skip_element(kinds >> 4, depth)?;
                    self.skip_element(kinds & 15, depth)
                })
            }
            STRUCT => {
                let mut field = 0;
                while let Some(kind) = self.field(&mut field)? {
                    self.skip(kind, depth)?;
                }
                Some(())
            }
            _ => None,
        }
    }

    fn skip_element(&mut self, kind: u8, depth: usize) -> Option<()> {
        if BOOLS.contains(&kind) { self.bytes(1) } else { self.skip(kind, depth) }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn bytes(&mut self, count: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(count).ok()?..)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer whose schema is these numbers of children, with a field before and one after it.
    fn file(children: &[u8]) -> Vec<u8> {
        let mut footer = vec![0x15, 2]; // 1: i32 version
        footer.extend([0x19, 0xfc, children.len() as u8 | 128, (children.len() >> 7) as u8]); // 2: list of structs
        for &count in children {
            footer.extend([0x48, 1, b'x']); // 4: name
            if count > 0 {
                footer.extend([0x15, count << 1]); // 5: num_children
            }
            footer.push(0);
        }
        footer.extend([0x16, 4, 0]); // 3: i64 num_rows
        let length = footer.len() as u32;
        [&b"PAR1"[..], &footer, &length.to_le_bytes(), b"PAR1"].concat()
    }

    #[test]
    fn counts_levels() {
        for (children, wanted) in
            [(&[][..], 0), (&[0], 0), (&[1, 0], 1), (&[3, 0, 0, 0], 1), (&[2, 2, 0, 0, 0], 2), (&[1, 1, 1, 1, 0], 4)]
        {
            assert_eq!(depth(&file(children)), Some(wanted), "{children:?}");
        }
        assert_eq!(depth(&file(&[1; 5000])), Some(4999));
    }

    #[test]
    fn damage_is_none_or_a_number_but_no_panic() {
        let whole = file(&[2, 2, 0, 0, 0]);
        for end in 0..whole.len() {
            assert_eq!(depth(&whole[..end]), None, "cut at {end}");
        }
        for at in 0..whole.len() {
            for byte in 0..=255 {
                let mut bad = whole.clone();
                bad[at] = byte;
                depth(&bad);
            }
        }
        let nested = [vec![0x1c; 100_000], vec![0; 100_000]].concat();
        let length = (nested.len() as u32).to_le_bytes();
        assert_eq!(depth(&[&nested[..], &length, b"PAR1"].concat()), None, "structures too deep to skip");
    }
}
