//! Texts and bytes of any length.

use parquet::basic::Encoding;

use super::{PAGE_BYTES_MAX, dictionary::Dictionary, kept, pages::width_of, runs::write_indices};

/// The values of a chunk: of the page as indices or plainly, and the distinct ones.
pub struct Texts {
    dictionary: Option<Dictionary>,
    distinct: Distinct,
    indices: Vec<u32>,
    /// Bytes that what `indices` stand for takes plainly.
    indexed_bytes: usize,
    /// Each behind its length.
    plain: Vec<u8>,
}

/// Distinct texts, as the dictionary's page has them.
#[derive(Default)]
struct Distinct {
    page: Vec<u8>,
    /// Where each begins and ends.
    places: Vec<(u32, u32)>,
}

impl Distinct {
    fn get(&self, index: u32) -> &[u8] {
        let (from, to) = self.places[index as usize];
        &self.page[from as usize..to as usize]
    }

    fn add(&mut self, text: &[u8]) {
        put_plainly(text, &mut self.page);
        let end = self.page.len() as u32;
        self.places.push((end - text.len() as u32, end));
    }
}

impl Texts {
    /// None so far.
    pub fn new(dictionary: bool) -> Self {
        let dictionary = dictionary.then(Dictionary::new);
        Self { dictionary, distinct: Distinct::default(), indices: vec![], indexed_bytes: 0, plain: vec![] }
    }

    /// Of texts that lie between these offsets, how many may still come into the page: at least one.
    pub fn room(&self, offsets: &[i32]) -> usize {
        let room = PAGE_BYTES_MAX.saturating_sub(self.plain.len());
        let first = offsets[0];
        offsets[1..].partition_point(|end| (end - first) as usize <= room).max(1)
    }

    /// Adds the texts between these offsets.
    pub fn extend(&mut self, offsets: &[i32], bytes: &[u8]) {
        let texts = offsets.windows(2).map(|at| &bytes[at[0] as usize..at[1] as usize]);
        let plain_bytes = (offsets[offsets.len() - 1] - offsets[0]) as usize + size_of::<u32>() * texts.len();
        let Some(dictionary) = &mut self.dictionary else {
            self.plain.reserve(plain_bytes);
            return texts.for_each(|text| put_plainly(text, &mut self.plain));
        };
        let mut index_of = |text: &[u8]| {
            let (index, new) = dictionary.text(text, |index| self.distinct.get(index) == text);
            if new {
                self.distinct.add(text);
            }
            index
        };
        self.indexed_bytes += plain_bytes;
        match repeated(offsets, bytes) {
            Some(text) => self.indices.resize(self.indices.len() + texts.len(), index_of(text)),
            None => self.indices.extend(texts.map(index_of)),
        }
    }

    /// Writes the page's values, and begins the next.
    pub fn end_page(&mut self, page: &mut Vec<u8>) -> Encoding {
        if self.dictionary.is_some() {
            write_indices(&self.indices, width_of(self.distinct.places.len()), page);
            self.indices.clear();
            self.indexed_bytes = 0;
            Encoding::RLE_DICTIONARY
        } else {
            page.extend_from_slice(&self.plain);
            self.plain.clear();
            self.plain = kept(std::mem::take(&mut self.plain));
            Encoding::PLAIN
        }
    }

    /// Without the dictionary from the next page on; what it holds stays.
    pub fn go_on_plainly(&mut self) {
        self.dictionary = None;
        self.indices = vec![];
    }

    /// Writes the first page plainly if its dictionary takes more than half of that: few long texts, each many times, must
    /// not be written out.
    pub fn give_up_if_distinct(&mut self) {
        if self.dictionary.is_some() && self.distinct.page.len() * 2 > self.indexed_bytes {
            self.plain.reserve(self.indexed_bytes);
            for index in &self.indices {
                put_plainly(self.distinct.get(*index), &mut self.plain);
            }
            self.distinct = Distinct::default();
            self.go_on_plainly();
        }
    }

    /// Whether there is one, and the page is of its indices.
    pub fn has_dictionary(&self) -> bool {
        self.dictionary.is_some()
    }

    /// Bytes of the dictionary's page.
    pub fn dictionary_bytes(&self) -> usize {
        self.distinct.page.len()
    }

    /// Bytes of the page, about.
    pub fn page_bytes(&self) -> usize {
        self.indices.len() + self.plain.len()
    }

    /// Memory that it holds, in bytes.
    pub fn held_bytes(&self) -> usize {
        let distinct = self.distinct.page.capacity() + self.distinct.places.capacity() * 8;
        let dictionary = self.dictionary.as_ref().map_or(0, Dictionary::held_bytes);
        dictionary + distinct + self.indices.capacity() * 4 + self.plain.capacity()
    }

    /// The dictionary's page and how many values it has.
    pub fn into_dictionary(self) -> (Vec<u8>, usize) {
        (self.distinct.page, self.distinct.places.len())
    }
}

fn put_plainly(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text);
}

/// The text that all of them are.
fn repeated<'a>(offsets: &[i32], bytes: &'a [u8]) -> Option<&'a [u8]> {
    let [first, .., last] = *offsets else { return None };
    let length = offsets[1] - first;
    let all = bytes.get(first as usize..last as usize)?;
    let text = &all[..length as usize];
    // The last text differs where most that do differ at all.
    let same = all.ends_with(text)
        && offsets.windows(2).all(|at| at[1] - at[0] == length)
        && all[text.len()..] == all[..all.len() - text.len()];
    same.then_some(text)
}
