//! An authority of its own for each test, and what it signs.

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

use super::gateway::Directory;

/// Who signs.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A chain and its key as PEM; a name with a colon is a URI.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        self.issue_until(names, 4096)
    }

    /// The same, valid until that year.
    pub fn issue_until(&self, names: &[&str], year: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "leaf");
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = names
            .iter()
            .map(|name| match (name.parse(), name.contains(':')) {
                (Ok(address), _) => SanType::IpAddress(address),
                (Err(_), true) => SanType::URI((*name).try_into().unwrap()),
                (Err(_), false) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// `tls_certificates` of a chain that is put into the directory under `name`.
    pub fn certificate(&self, directory: &Directory, name: &str, names: &[&str]) -> String {
        let (chain, key) = self.issue(names);
        let chain = directory.put(&format!("{name}.pem"), &chain);
        let key = directory.put(&format!("{name}.key"), &key);
        format!(
            "{{ certificate_chain: {{ filename: {} }}, private_key: {{ filename: {} }} }}",
            chain.display(),
            key.display()
        )
    }

    /// `trusted_ca` of this authority, put into the directory under `name`.
    pub fn trusted(&self, directory: &Directory, name: &str) -> String {
        format!("{{ filename: {} }}", directory.put(name, &self.pem).display())
    }
}
