use std::fmt;

use retrovisor_guest::Gfn;

/// Damaged bytes in the store: their place, and what is affected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// What is wrong.
    pub what: String,
    /// The content that cannot be read, where one content is concerned.
    pub content: Option<u64>,
    /// The pack file's number.
    pub pack: Option<u32>,
    /// Byte offset of the frame in the pack.
    pub offset: Option<u64>,
    /// The affected checkpoints, by short id, oldest first; also those that only inherit the page.
    pub checkpoints: Vec<String>,
    /// The frames affected.
    pub gfns: Vec<Gfn>,
    /// The sections of machine state affected, as `checkpoint/format`.
    pub sections: Vec<String>,
    /// Whether checkpoints after these cannot be read either, down to the next full maps.
    pub breaks_chain: bool,
}

impl Damage {
    /// Damage of the catalogue itself.
    pub(crate) fn catalogue(what: impl Into<String>) -> Self {
        Self { what: what.into(), ..Self::default() }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("damaged: ")?;
        f.write_str(&self.what)?;
        if let Some(pack) = self.pack {
            write!(f, ", pack {pack:06}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, ", offset {offset}")?;
        }
        list(f, "checkpoint", self.checkpoints.len(), self.checkpoints.iter())?;
        list(f, "page", self.gfns.len(), self.gfns.iter())?;
        list(f, "state", self.sections.len(), self.sections.iter())
    }
}

/// Writes the first few of a list.
fn list<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    noun: &str,
    count: usize,
    items: impl Iterator<Item = T>,
) -> fmt::Result {
    const SHOWN: usize = 4;
    for (at, item) in items.take(SHOWN).enumerate() {
        if at == 0 {
            write!(f, ", {noun} {item}")?;
        } else {
            write!(f, " {item}")?;
        }
    }
    if count > SHOWN { write!(f, " and {} more", count - SHOWN) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_and_what_it_touches_are_named() {
        let damage = Damage {
            what: "the page is not what was written".into(),
            content: Some(9),
            pack: Some(3),
            offset: Some(4096),
            checkpoints: (0..6).map(|at| format!("c{at}")).collect(),
            gfns: vec![Gfn(0x10)],
            sections: vec![],
            breaks_chain: false,
        };
        assert_eq!(
            damage.to_string(),
            "damaged: the page is not what was written, pack 000003, offset 4096, checkpoint c0 c1 c2 c3 and 2 more, page 0x10"
        );
    }
}
