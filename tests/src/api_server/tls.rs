//! What a server takes that is asked over TLS: a certificate, signed by an authority of its own, and a token that whoever asks
//! must show.

use std::{fs, io, path::Path, sync::Arc};

use hyper::header::{AUTHORIZATION, HeaderMap};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig, crypto,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

/// Keys of one server.
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    /// The authority's certificate, PEM
    authority: String,
    token: String,
}

impl Tls {
    /// New ones, for a server at 127.0.0.1.
    pub(super) fn new() -> io::Result<Self> {
        let mut authority = CertificateParams::new([]).map_err(io::Error::other)?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().map_err(io::Error::other)?;
        let certified = authority.self_signed(&authority_key).map_err(io::Error::other)?;
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = CertificateParams::new(["127.0.0.1".to_owned()])
            .and_then(|own| own.signed_by(&key, &Issuer::new(authority, authority_key)))
            .map_err(io::Error::other)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| {
                config
                    .with_no_client_auth()
                    .with_single_cert(vec![certificate.der().clone()], key)
            })
            .map_err(io::Error::other)?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            authority: certified.pem(),
            token: format!("{:032x}", fastrand::u128(..)),
        })
    }

    /// Whether a request shows the token.
    pub(super) fn is_shown(&self, headers: &HeaderMap) -> bool {
        headers
            .get(AUTHORIZATION)
            .is_some_and(|shown| shown.as_bytes() == format!("Bearer {}", self.token).as_bytes())
    }

    /// Writes the files that a pod finds in place of its service account, and says where they are: fields for the cluster and for
    /// the user of a kubeconfig, as kubeadm writes it for kube-proxy.
    pub(super) fn write(&self, directory: &Path) -> io::Result<(Value, Value)> {
        let (authority, token) = (directory.join("ca.crt"), directory.join("token"));
        fs::write(&authority, &self.authority)?;
        fs::write(&token, &self.token)?;
        Ok((json!({"certificate-authority": authority}), json!({"tokenFile": token})))
    }
}
