//! Protobuf's wire format: reading field by field without copying, and writing. It must not know any schema.

/// What a field holds on the wire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
    /// A group, which nothing in Envoy's API uses.
    Group,
}

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The fields of a message's bytes, in their order.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or(Malformed)?;
            self.rest = rest;
            if shift == 63 && byte > 1 {
                return Err(Malformed);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*head)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
        let (head, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    fn field(&mut self) -> Result<(u32, Wire<'a>), Malformed> {
        let tag = u32::try_from(self.varint()?).map_err(|_| Malformed)?;
        let number = tag >> 3;
        if number == 0 {
            return Err(Malformed);
        }
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.fixed()?)),
            2 => Wire::Bytes(self.bytes()?),
            3 => self.skip_group(number)?,
            5 => Wire::Fixed32(u32::from_le_bytes(self.fixed()?)),
            _ => return Err(Malformed),
        };
        Ok((number, value))
    }

    /// Groups nest; a stack of their numbers stands for recursion.
    fn skip_group(&mut self, number: u32) -> Result<Wire<'a>, Malformed> {
        const DEEPEST: usize = 100;
        let mut open = vec![number];
        while let Some(innermost) = open.last() {
            let tag = u32::try_from(self.varint()?).map_err(|_| Malformed)?;
            match tag & 7 {
                0 => drop(self.varint()?),
                1 => drop(self.fixed::<8>()?),
                2 => drop(self.bytes()?),
                3 if open.len() < DEEPEST => open.push(tag >> 3),
                4 if tag >> 3 == *innermost => drop(open.pop()),
                5 => drop(self.fixed::<4>()?),
                _ => return Err(Malformed),
            }
        }
        Ok(Wire::Group)
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u32, Wire<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u32) {
    put_varint(out, u64::from(number << 3 | wire_type));
}

pub(crate) fn put_varint_field(out: &mut Vec<u8>, number: u32, value: u64) {
    put_tag(out, number, 0);
    put_varint(out, value);
}

pub(crate) fn put_fixed64_field(out: &mut Vec<u8>, number: u32, value: [u8; 8]) {
    put_tag(out, number, 1);
    out.extend_from_slice(&value);
}

pub(crate) fn put_fixed32_field(out: &mut Vec<u8>, number: u32, value: [u8; 4]) {
    put_tag(out, number, 5);
    out.extend_from_slice(&value);
}

pub(crate) fn put_bytes_field(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    put_tag(out, number, 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Writes a message field: what `body` appends becomes its contents.
pub(crate) fn put_message_field<T>(out: &mut Vec<u8>, number: u32, body: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    put_tag(out, number, 2);
    let start = out.len();
    let result = body(out);
    let mut length = Vec::with_capacity(5);
    put_varint(&mut length, (out.len() - start) as u64);
    out.splice(start..start, length);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut out = Vec::new();
        put_varint_field(&mut out, 1, u64::MAX);
        put_fixed64_field(&mut out, 2, 1.5f64.to_le_bytes());
        put_message_field(&mut out, 300, |out| put_bytes_field(out, 1, &[7; 200]));
        let fields: Result<Vec<_>, _> = Reader::new(&out).collect();
        let fields = fields.unwrap();
        assert_eq!(fields[0], (1, Wire::Varint(u64::MAX)));
        assert_eq!(fields[1], (2, Wire::Fixed64(1.5f64.to_bits())));
        let Wire::Bytes(inner) = fields[2].1 else { panic!("no message") };
        assert_eq!(Reader::new(inner).next(), Some(Ok((1, Wire::Bytes(&[7; 200])))));
    }

    #[test]
    fn broken_bytes_are_refused() {
        for bytes in [&[0x08][..], &[0x0a, 5, 1], &[0xff; 11], &[0x00, 1], &[0x0b, 0x08, 1], &[0x0f]] {
            assert!(Reader::new(bytes).any(|field| field.is_err()), "{bytes:?}");
        }
        assert_eq!(Reader::new(&[0x0b, 0x08, 1, 0x0c]).next(), Some(Ok((1, Wire::Group))));
    }
}
