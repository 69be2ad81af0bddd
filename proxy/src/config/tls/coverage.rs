//! Which fields of TLS act. It must not know how.

use tidegate_xds::Coverage;

/// What is compiled here.
pub(crate) const COVERAGE: &[Coverage] = &[
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        enforced: &[
            "common_tls_context",
            "require_client_certificate",
            "require_sni",
            "session_ticket_keys",
            "session_ticket_keys_sds_secret_config",
            "disable_stateless_session_resumption",
            "disable_stateful_session_resumption",
            "session_timeout",
            "ocsp_staple_policy",
            "full_scan_certs_on_sni_mismatch",
            "prefer_client_ciphers",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        enforced: &[
            "common_tls_context",
            "sni",
            "auto_host_sni",
            "auto_sni_san_validation",
            "allow_renegotiation",
            "max_session_keys",
            "enforce_rsa_key_usage",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext",
        enforced: &[
            "tls_params",
            "tls_certificates",
            "tls_certificate_sds_secret_configs",
            "validation_context",
            "validation_context_sds_secret_config",
            "combined_validation_context",
            "alpn_protocols",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext",
        enforced: &["default_validation_context", "validation_context_sds_secret_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.TlsParameters",
        enforced: &[
            "tls_minimum_protocol_version",
            "tls_maximum_protocol_version",
            "cipher_suites",
            "ecdh_curves",
            "signature_algorithms",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.TlsCertificate",
        enforced: &["certificate_chain", "private_key", "ocsp_staple", "watched_directory"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys",
        enforced: &["keys"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
        enforced: &[
            "trusted_ca",
            "system_root_certs",
            "watched_directory",
            "verify_certificate_spki",
            "verify_certificate_hash",
            "match_typed_subject_alt_names",
            "match_subject_alt_names",
            "crl",
            "allow_expired_certificate",
            "trust_chain_verification",
            "custom_validator_config",
            "only_verify_leaf_cert_crl",
            "max_verify_depth",
            "suppress_client_ca_list",
        ],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext.SystemRootCerts",
        enforced: &[],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
        enforced: &["trust_domains"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.TrustDomain",
        enforced: &["name", "trust_bundle"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig",
        enforced: &["name", "sds_config"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.GenericSecret",
        enforced: &["secret", "secrets"],
        listed: &[],
    },
    Coverage {
        message: "envoy.extensions.transport_sockets.tls.v3.Secret",
        enforced: &["name", "tls_certificate", "session_ticket_keys", "validation_context", "generic_secret"],
        listed: &[],
    },
];
