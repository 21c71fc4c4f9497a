//! Symbols and types, read from a kernel's image.

use crate::{
    btf::Types,
    image::{Image, ImageRange},
    kallsyms::Tables,
    library::Extents,
    pages::Pages,
    paging::AddressSpace,
    symbols::Symbols,
    vmcoreinfo::VmcoreInfo,
};

/// The types of the kernel are larger than those of a module.
const TYPES_BYTES_MIN: usize = 1 << 20;

/// The place of kallsyms: from a note, else by its structure.
fn find_tables(note: Option<&VmcoreInfo>, image: &Image) -> Option<Tables> {
    note.and_then(|note| tables_of(note, image)).or_else(|| Tables::scan(image))
}

/// The place of kallsyms according to a VMCOREINFO note of 6.0 and later, if its tables are there.
fn tables_of(note: &VmcoreInfo, image: &Image) -> Option<Tables> {
    let at = |name: &str| image.offset(note.symbol(name)?);
    Tables::check(at("kallsyms_num_syms")?, at("kallsyms_token_table")?, at("kallsyms_token_index")?, image)
}

/// Reads the symbols and types of an image. Also returns the parts of the image that determine them, if another boot of
/// the same kernel would give the same ones.
pub(super) fn read_image(
    pages: &Pages,
    space: AddressSpace,
    note: Option<&VmcoreInfo>,
    range: &ImageRange,
) -> Result<(Symbols, Option<Types>, Option<Extents>), String> {
    // Symbols and types are constant data: less than half of the image.
    let constants = range.constants(pages, space).map(|constants| constants.read(pages));
    let found = constants.and_then(|image| Some((find_tables(note, &image)?, image)));
    let (tables, mut image) = if let Some(found) = found {
        found
    } else {
        let image = range.read(pages);
        (find_tables(note, &image).ok_or("map an image without a symbol table")?, image)
    };
    let (symbols, symbols_at) =
        tables.read(&image, range).ok_or("map an image whose symbol table is damaged")?;
    let tables_virt = image.virt;
    let mut types = read_types(&image, &symbols);
    if types.is_none() && (image.bytes.len() as u64) < range.bytes {
        image = range.read(pages);
        types = read_types(&image, &symbols);
    }
    let extents = types.as_ref().and_then(|(_, types_at, length)| {
        let place = |virt: u64, at: usize| virt.checked_add(at as u64)?.checked_sub(range.virt);
        let part = |(at, length): (usize, usize)| Some((place(tables_virt, at)?, length as u64));
        let base_at = symbols_at.base_at.map(|at| place(tables_virt, at));
        Some(Extents {
            tables: part(symbols_at.tables)?,
            offsets: part(symbols_at.offsets)?,
            base_at: if let Some(at) = base_at { Some(at?) } else { None },
            types: (place(image.virt, *types_at)?, *length as u64),
        })
    });
    Ok((symbols, types.map(|(types, ..)| types), extents.filter(|_| symbols_at.slides)))
}

/// The kernel's types, between the symbols that mark them, else by scan; with their offset in the image and length.
fn read_types(image: &Image, symbols: &Symbols) -> Option<(Types, usize, usize)> {
    let parse = |at: usize| {
        let blob = image.bytes.get(at..)?;
        Some((Types::parse(blob)?, at, Types::announced_bytes(blob)?))
    };
    let marked = symbols.address("__start_BTF").and_then(|start| image.offset(start));
    if let Some(types) = marked.and_then(parse) {
        return Some(types);
    }
    let announced = |at: &usize| image.bytes.get(*at..).and_then(Types::announced_bytes);
    memchr::memmem::find_iter(&image.bytes, &[0x9f, 0xeb, 1, 0])
        .filter(|at| announced(at).is_some_and(|bytes| bytes > TYPES_BYTES_MIN))
        .take(64)
        .find_map(parse)
}
