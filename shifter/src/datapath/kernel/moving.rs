//! The steps of a migration that lie before and after the attach.

use super::{KernelDatapath, lock};
use crate::datapath::{
    DatapathError, ServiceId,
    attach::{Ingress, Place},
    migrate,
};

impl KernelDatapath {
    /// Before the first program is attached.
    pub fn before_attach(&self) -> Result<(), DatapathError> {
        match &mut *lock(&self.migration) {
            Some(migration) => migration.begin(),
            None => Ok(()),
        }
    }

    /// Once all are: moves the flows of the table before, if there is one, and
    /// pins the programs, for whoever takes over from this version. Says what moved.
    pub fn after_attach(&self) -> Result<Option<String>, DatapathError> {
        let programs = [
            (Place::Xdp, self.program(Place::Xdp)?),
            (Place::TcIngress, self.program(Place::TcIngress)?),
            (Place::TcEgress, self.program(Place::TcEgress)?),
        ];
        match lock(&self.migration).take() {
            Some(migration) => {
                let in_force = |id: u32| {
                    let body = lock(&self.tables).services.body(id as ServiceId);
                    body.map(|body| body.generation)
                };
                let config = self.config.read(0);
                migration
                    .finish(self.flows.sets(), config, programs, &in_force)
                    .map(Some)
            }
            None => migrate::settle(lock(&self.attacher).pins(), programs).map(|()| None),
        }
    }

    /// Refuses a hook that has no program before to ask: flows would be strangers to it.
    pub(super) fn refuse_unasked(&self, hook: Ingress) -> Result<(), DatapathError> {
        match &*lock(&self.migration) {
            Some(migration) if !migration.can_attach(hook) => {
                let hook = match hook {
                    Ingress::Xdp => "XDP",
                    Ingress::Tc => "tc",
                };
                Err(DatapathError::Refused(format!(
                    "flows move over from another layout, whose program at {hook} is not known: start with the hook that was used before, and change it in a start after that"
                )))
            }
            _ => Ok(()),
        }
    }
}
