//! The control plane: moves xDS resources and never interprets them.
//! So far it holds nothing but its `xds` crate beside it; what is not built is refused by the configuration that asks for it.
