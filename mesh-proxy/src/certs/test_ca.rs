//! A certificate authority for tests, in this process.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use mesh_api::wire::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use mesh_api::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType, IsCa,
    KeyPair, SanType,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::CaClient;

pub(crate) const TOKEN: &str = "the-token";
const CLUSTER: &str = "cluster-1";

type Root = CertifiedIssuer<'static, KeyPair>;

/// What the authority signs with and for whom, as tests set it, and how much it has signed.
pub(crate) struct TestCaState {
    /// Signs with the last, lists all.
    pub roots: Vec<Arc<Root>>,
    pub lifetime: Duration,
    /// Signs for this one, whoever asks.
    pub identity: Option<String>,
    /// Signs for others, as istiod does, where this is the cluster that they say they are of alone.
    pub cluster: Option<String>,
    /// Certificates signed so far.
    pub signed: usize,
}

#[derive(Clone)]
pub(crate) struct TestCa {
    state: Arc<Mutex<TestCaState>>,
    files: Arc<TempDir>,
}

/// A server that listens until it is stopped.
pub(crate) struct RunningCa {
    pub address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

pub(crate) fn generate_root(name: &str) -> Arc<Root> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Arc::new(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
}

impl TestCa {
    pub fn new(lifetime: Duration) -> Self {
        let (roots, identity, cluster) = (vec![generate_root("first")], None, Some(CLUSTER.to_owned()));
        let state = TestCaState { roots, lifetime, identity, cluster, signed: 0 };
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let authority = Self { state: Arc::new(Mutex::new(state)), files: Arc::new(files) };
        authority.write_root_file();
        authority
    }

    pub fn lock_state(&self) -> MutexGuard<'_, TestCaState> {
        self.state.lock().unwrap()
    }

    /// Brings the file of roots in line.
    pub fn write_root_file(&self) {
        std::fs::write(self.files.path().join("roots.pem"), self.root_bundle_pem()).unwrap();
    }

    pub fn root_bundle_pem(&self) -> String {
        self.lock_state().roots.iter().map(|root| root.pem()).collect()
    }

    pub fn root_cert_path(&self) -> std::path::PathBuf {
        self.files.path().join("roots.pem")
    }

    pub fn token_file_path(&self) -> std::path::PathBuf {
        self.files.path().join("token")
    }

    pub fn ca_client(&self, address: SocketAddr) -> CaClient {
        let url = format!("https://{address}");
        let (name, cluster) = ("mesh-control".to_owned(), CLUSTER.to_owned());
        CaClient::new(url, name, self.root_cert_path(), self.token_file_path(), cluster)
    }

    pub async fn serve(&self, address: &str) -> RunningCa {
        self.serve_with_routes(address, Routes::default()).await
    }

    /// Serves certificates and `more`. Clients may show a certificate.
    pub async fn serve_with_routes(&self, address: &str, more: Routes) -> RunningCa {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName("mesh-control".try_into().unwrap())];
        let certificate = params.signed_by(&key, &**self.lock_state().roots.last().unwrap()).unwrap();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate.pem(), key.serialize_pem()))
            .client_ca_root(Certificate::from_pem(self.root_bundle_pem()))
            .client_auth_optional(true);
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = more.add_service(IstioCertificateServiceServer::new(self.clone()));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = Server::builder().tls_config(tls).unwrap().add_routes(routes);
        let task = tokio::spawn(async move {
            let serve = server.serve_with_incoming(TcpListenerStream::new(listener));
            tokio::select! {
                result = serve => result.unwrap(),
                _ = stopped => {}
            }
        });
        RunningCa { address, stop, task }
    }

    fn sign(&self, csr: &str) -> IstioCertificateResponse {
        let mut state = self.lock_state();
        state.signed += 1;
        let csr = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let mut params = csr.params;
        if let Some(identity) = &state.identity {
            params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().unwrap())];
        }
        let now = SystemTime::now();
        params.not_before = now.into();
        params.not_after = (now + state.lifetime).into();
        let leaf = params.signed_by(&csr.public_key, &**state.roots.last().unwrap()).unwrap();
        let roots = state.roots.iter().map(|root| root.pem()).collect();
        IstioCertificateResponse { cert_chain: vec![leaf.pem(), roots] }
    }
}

impl RunningCa {
    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap();
    }
}

#[tonic::async_trait]
impl IstioCertificateService for TestCa {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let said = |key| request.metadata().get(key).and_then(|value| value.to_str().ok());
        if said("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return Err(Status::unauthenticated("who are you?"));
        }
        let for_another = request.get_ref().metadata.is_some();
        if for_another && said("clusterid") != self.lock_state().cluster.as_deref() {
            return Err(Status::unauthenticated("no node authorizer for that cluster"));
        }
        Ok(Response::new(self.sign(&request.get_ref().csr)))
    }
}
