use retrovisor_guest::DiskShape;

use super::map::DiskMap;
use super::record::DiskRecord;
use crate::catalogue::{DiskLink, Link};
use crate::content::ContentRef;
use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::store::Store;

impl Store {
    /// Checks the lists and maps of a checkpoint's disks; passes all contents that changed on them, each with its disk,
    /// to `content`.
    pub(crate) fn verify_disks(
        &self,
        link: &Link,
        mut content: impl FnMut(&DiskRecord, u64, ContentRef),
    ) -> Result<Vec<Damage>> {
        let mut damaged = Vec::new();
        let disks = match self.catalogue().disks_at(link.checkpoint) {
            Ok(disks) => disks,
            Err(Error::Damaged(damage)) => return Ok(vec![*damage]),
            Err(error) => return Err(error),
        };
        for (record, disk_link) in disks {
            match self.block_changes(&disk_link) {
                Ok(changes) => {
                    for (block, to) in &changes {
                        content(&record, *block, *to);
                    }
                    damaged.extend(self.verify_disk_map(&record, &disk_link, &changes)?);
                }
                Err(Error::Damaged(damage)) => damaged.push(of_disk(*damage, &record.shape())),
                Err(error) => return Err(error),
            }
        }
        Ok(damaged)
    }

    /// A stored full map equals the result of the changes that lead to it.
    fn verify_disk_map(
        &self,
        record: &DiskRecord,
        link: &DiskLink,
        changes: &[(u64, ContentRef)],
    ) -> Result<Option<Damage>> {
        if link.keyframe_distance > 0 {
            return Ok(None);
        }
        let stored = match self.disk_full_map(link.checkpoint, record) {
            Ok(map) => map,
            Err(Error::Damaged(damage)) => return Ok(Some(of_disk(*damage, &record.shape()))),
            Err(error) => return Err(error),
        };
        let has_parent = match link.parent {
            Some(parent) => self.catalogue().disks_at(parent)?.iter().any(|(disk, _)| disk.id == record.id),
            None => false,
        };
        let mut computed = match link.parent.filter(|_| has_parent) {
            None => DiskMap::base(record.blocks()),
            Some(parent) => match self.disk_map(parent, record) {
                Ok(map) => (*map).clone(),
                // A damaged parent is reported separately.
                Err(Error::Damaged(_)) => return Ok(None),
                Err(error) => return Err(error),
            },
        };
        for (block, content) in changes {
            computed.set(*block, *content);
        }
        if computed.diff(&stored).is_empty() {
            return Ok(None);
        }
        let damage = Damage::catalogue("the full block map is not what the changes lead to");
        Ok(Some(of_disk(damage, &record.shape())))
    }
}

fn of_disk(mut damage: Damage, disk: &DiskShape) -> Damage {
    damage.what = format!("{} (disk {})", damage.what, disk.name);
    damage
}
