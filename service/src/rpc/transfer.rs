use std::path::{Path, PathBuf};

use retrovisor_manager::ManagerError;
use retrovisor_proto::v1::transfer_service_server::TransferService;
use retrovisor_proto::v1::{ExportRequest, ExportResponse, FileFormat, ImportRequest, ImportResponse};
use retrovisor_snapshot::{ARCHIVE_MAGIC, DumpFormat, ExportProgress};
use tonic::{Request, Response, Status};

use super::Services;
use super::stream::Answers;

#[tonic::async_trait]
impl TransferService for Services {
    type ExportStream = Answers<ExportResponse>;
    type ImportStream = Answers<ImportResponse>;

    async fn export(&self, request: Request<ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        let request = request.into_inner();
        let (format, path) = (request.format(), absolute(&request.path)?);
        Ok(self.stream(move |services, to| {
            let store = services.manager.store();
            let mut tell = |ExportProgress { done, total }| {
                to.progress(ExportResponse { done, total, ..ExportResponse::default() })
            };
            let named = if request.checkpoint.is_empty() { "latest" } else { &request.checkpoint };
            let report = match format {
                FileFormat::Raw => {
                    let record = services.resolve(&request.machine, named)?;
                    store.export_raw(record.id, &path, &mut tell)?
                }
                FileFormat::ElfCore => {
                    let record = services.resolve(&request.machine, named)?;
                    store.export_elf_core(record.id, &path, &mut tell)?
                }
                FileFormat::Archive => {
                    let machine = store.catalogue().machine(&request.machine)?.id;
                    let report = store.export_archive(machine, &path, &mut tell)?;
                    to.send(ExportResponse {
                        done: report.contents,
                        total: report.contents,
                        finished: true,
                        length_bytes: report.length_bytes,
                        disk_bytes: report.length_bytes,
                        vmcoreinfo: false,
                    });
                    return Ok(());
                }
                FileFormat::Unspecified => {
                    return Err(ManagerError::Invalid("an export needs a format".into()));
                }
            };
            to.send(ExportResponse {
                done: report.pages,
                total: report.pages,
                finished: true,
                length_bytes: report.length_bytes,
                disk_bytes: report.disk_bytes,
                vmcoreinfo: report.vmcoreinfo,
            });
            Ok(())
        }))
    }

    async fn import(&self, request: Request<ImportRequest>) -> Result<Response<Self::ImportStream>, Status> {
        let request = request.into_inner();
        let path = absolute(&request.path)?;
        let format = match request.format() {
            FileFormat::Unspecified => guess(&path)?,
            named => named,
        };
        Ok(self.stream(move |services, to| {
            let store = services.manager.store();
            let mut tell = |ExportProgress { done, total }| {
                to.progress(ImportResponse { done, total, ..ImportResponse::default() })
            };
            let mut dump = |format| -> Result<_, ManagerError> {
                let report = store.import_dump(&request.machine, &path, format, &mut tell)?;
                let reason = services.manager.read(report.newest)?;
                Ok((report, reason))
            };
            let (report, reason) = match format {
                FileFormat::Raw => dump(DumpFormat::Raw)?,
                FileFormat::ElfCore => dump(DumpFormat::ElfCore)?,
                FileFormat::Archive => {
                    let name = Some(&request.machine[..]).filter(|name| !name.is_empty());
                    (store.import_archive(name, &path, &mut tell)?, None)
                }
                FileFormat::Unspecified => {
                    return Err(ManagerError::Invalid("an import needs a format".into()));
                }
            };
            to.send(ImportResponse {
                finished: true,
                machine: report.machine,
                checkpoints: report.checkpoints,
                stored_bytes: report.stored_bytes,
                reason: reason.unwrap_or_default(),
                ..ImportResponse::default()
            });
            Ok(())
        }))
    }
}

fn absolute(path: &str) -> Result<PathBuf, Status> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Status::invalid_argument(format!("{} is not an absolute path", path.display())))
}

/// ELF cores and archives are recognised by their first bytes; everything else is raw.
fn guess(path: &Path) -> Result<FileFormat, Status> {
    use std::io::Read as _;
    let failed =
        |error: std::io::Error| Status::not_found(format!("cannot read {}: {error}", path.display()));
    let mut magic = [0; 8];
    let length = std::fs::File::open(path).map_err(failed)?.read(&mut magic).map_err(failed)?;
    Ok(match &magic[..length] {
        bytes if bytes.starts_with(b"\x7fELF") => FileFormat::ElfCore,
        bytes if bytes == ARCHIVE_MAGIC => FileFormat::Archive,
        _ => FileFormat::Raw,
    })
}
