use retrovisor_analytics::report;
use retrovisor_proto::v1::anomaly_service_server::AnomalyService;
use retrovisor_proto::v1::{
    GetReportRequest, GetReportResponse, ListAnomaliesRequest, ListAnomaliesResponse,
};
use retrovisor_snapshot::Verdict;
use tonic::{Request, Response, Status};

use super::{Services, convert};

#[tonic::async_trait]
impl AnomalyService for Services {
    async fn list_anomalies(
        &self,
        request: Request<ListAnomaliesRequest>,
    ) -> Result<Response<ListAnomaliesResponse>, Status> {
        let name = request.into_inner().machine;
        let answer = self
            .blocking(move |services| {
                let store = services.manager.store();
                let machine = store.catalogue().machine(&name)?.id;
                let checkpoints = store.catalogue().checkpoints(machine)?;
                let odd = checkpoints
                    .iter()
                    .filter(|record| matches!(record.verdict, Verdict::Suspect | Verdict::Bad));
                let incidents = store.catalogue().incidents(machine)?;
                Ok(ListAnomaliesResponse {
                    checkpoints: odd
                        .map(|record| convert::checkpoint(store, record))
                        .collect::<Result<_, _>>()?,
                    incidents: incidents
                        .iter()
                        .map(|record| convert::incident(store, record))
                        .collect::<Result<_, _>>()?,
                })
            })
            .await?;
        Ok(Response::new(answer))
    }

    async fn get_report(
        &self,
        request: Request<GetReportRequest>,
    ) -> Result<Response<GetReportResponse>, Status> {
        let name = request.into_inner().machine;
        let answer = self
            .blocking(move |services| {
                let catalogue = services.manager.store().catalogue();
                let report = report(catalogue, catalogue.machine(&name)?.id)?;
                Ok(GetReportResponse { html: report.to_html(), json: report.to_json()? })
            })
            .await?;
        Ok(Response::new(answer))
    }
}
