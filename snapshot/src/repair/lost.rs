use std::collections::HashMap;

use super::plan::{ByCheckpoint, LostCheckpoint};
use crate::catalogue::Link;
use crate::damage::Damage;
use crate::error::Result;
use crate::id::CheckpointId;
use crate::store::Store;

/// Reasons kept for one checkpoint.
const REASONS_MAX: usize = 8;

/// The checkpoints lost by damage: those named, and those whose own maps are read through a lost list.
pub(super) fn lost(store: &Store, damaged: &[Damage]) -> Result<Vec<LostCheckpoint>> {
    let links = store.catalogue().links()?;
    let mut names: HashMap<String, CheckpointId> = HashMap::new();
    let mut by_id: HashMap<CheckpointId, String> = HashMap::new();
    for link in &links {
        let name = store.catalogue().checkpoint(link.checkpoint)?.name;
        names.insert(name.clone(), link.checkpoint);
        by_id.insert(link.checkpoint, name);
    }
    let mut found = ByCheckpoint::new();
    let mut note = |id: CheckpointId, what: &str| {
        let reasons = found.entry(id).or_default();
        if reasons.len() < REASONS_MAX && !reasons.iter().any(|known| known == what) {
            reasons.push(what.to_owned());
        }
    };
    for damage in damaged {
        let what = in_short(damage);
        let sections = damage.sections.iter().filter_map(|section| section.split('/').next());
        for name in damage.checkpoints.iter().map(String::as_str).chain(sections) {
            let Some(id) = names.get(name) else { continue };
            note(*id, &what);
            if damage.breaks_chain {
                below(&links, *id).for_each(|id| note(id, &what));
            }
        }
    }
    Ok(found
        .into_iter()
        .map(|(id, what)| LostCheckpoint { id, name: by_id.get(&id).cloned().unwrap_or_default(), what })
        .collect())
}

/// The checkpoints whose maps are read through this one: down to the next full maps.
fn below(links: &[Link], from: CheckpointId) -> impl Iterator<Item = CheckpointId> {
    let mut through = vec![from];
    // Parents first: one pass finds all.
    for link in links.iter().filter(|link| link.keyframe_distance > 0) {
        if link.parent.is_some_and(|parent| through.contains(&parent)) {
            through.push(link.checkpoint);
        }
    }
    through.into_iter().skip(1)
}

fn in_short(damage: &Damage) -> String {
    let shown = Damage { checkpoints: vec![], ..damage.clone() };
    let text = shown.to_string();
    text.strip_prefix("damaged: ").unwrap_or(&text).to_owned()
}
