//! The form in which a batch lies in the store: compressed when that pays, and back.
use crate::store::Error;
use bytes::Bytes;
use dashstream_proto::log::v1::{Batch, Packing};
use prost::Message;

/// Smaller batches stay as they are, bytes.
const COMPRESS_ABOVE: usize = 512;
/// Fast, and most of what there is to gain.
const LEVEL: i32 = 1;
/// What one stored batch may inflate to, bytes.
const INFLATED_BYTES_MAX: usize = 64 << 20;

/// Encodes a batch; compressed when at least an eighth is saved. When it was stored is the store's to say.
pub(crate) fn encode(batch: &Batch) -> Vec<u8> {
    let batch = Batch { stored_ms: None, ..batch.clone() };
    let plain = batch.records.len();
    if plain > COMPRESS_ABOVE
        && let Ok(packed) = zstd::bulk::compress(&batch.records, LEVEL)
        && packed.len() < plain - plain / 8
    {
        return Batch { packing: Packing::Zstd.into(), records: packed.into(), ..batch }.encode_to_vec();
    }
    batch.encode_to_vec()
}

/// Reads a batch back, inflated.
///
/// # Errors
/// [`Error::Corrupt`] when it is none.
pub(crate) fn decode(bytes: Bytes) -> Result<Batch, Error> {
    let batch = Batch::decode(bytes).map_err(|error| Error::Corrupt(error.to_string()))?;
    if batch.packing != i32::from(Packing::Zstd) {
        return Ok(batch);
    }
    let declared = zstd::zstd_safe::get_frame_content_size(&batch.records).ok().flatten().unwrap_or(0);
    let most = usize::try_from(declared).unwrap_or(usize::MAX);
    if most > INFLATED_BYTES_MAX {
        return Err(Error::Corrupt(format!("a batch that inflates to {declared} bytes")));
    }
    let records =
        zstd::bulk::decompress(&batch.records, most).map_err(|error| Error::Corrupt(error.to_string()))?;
    Ok(Batch { packing: Packing::Plain.into(), records: records.into(), ..batch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_comes_back_as_it_was_and_smaller_where_that_pays() {
        for (why, records, smaller) in [
            ("text compresses", "the same again ".repeat(200).into_bytes(), true),
            ("a small one stays", b"tiny".to_vec(), false),
            (
                "noise stays",
                (0..4_000_u32)
                    .flat_map(|i| i.wrapping_mul(2_654_435_761).rotate_left(7).to_le_bytes())
                    .collect(),
                false,
            ),
        ] {
            let batch =
                Batch { records: records.into(), packing: Packing::Plain.into(), ..Default::default() };
            let stored = encode(&batch);
            assert_eq!(stored.len() < batch.encoded_len(), smaller, "{why}");
            assert_eq!(decode(stored.into()).unwrap(), batch, "{why}");
        }
    }

    #[test]
    fn a_broken_one_is_said_to_be() {
        let broken =
            Batch { records: vec![1, 2, 3].into(), packing: Packing::Zstd.into(), ..Default::default() };
        assert!(decode(broken.encode_to_vec().into()).is_err());
        assert!(decode(Bytes::from_static(b"\xff\xff")).is_err());
    }
}
