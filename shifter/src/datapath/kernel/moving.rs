//! The steps of a migration that lie before and after the attach.

use super::{KernelDatapath, lock};
use crate::datapath::{DatapathError, attach::Place, migrate};

impl KernelDatapath {
    /// Before the first program is attached.
    pub fn before_attach(&self) -> Result<(), DatapathError> {
        match &mut *lock(&self.migration) {
            Some(migration) => migration.begin(),
            None => Ok(()),
        }
    }

    /// Once all are: moves the flows of the table before, if there is one, and
    /// pins the programs, for whoever takes over from this version.
    pub fn after_attach(&self) -> Result<(), DatapathError> {
        let programs = [
            (Place::Xdp, self.program(Place::Xdp)?),
            (Place::TcIngress, self.program(Place::TcIngress)?),
            (Place::TcEgress, self.program(Place::TcEgress)?),
        ];
        match lock(&self.migration).take() {
            Some(migration) => migration.finish(self.flows.sets(), self.config.read(0), programs),
            None => migrate::settle(lock(&self.attacher).pins(), programs),
        }
    }

    /// Whether flows that XDP is not asked about would be lost to it.
    pub(super) fn refuse_xdp(&self) -> Result<(), DatapathError> {
        match &*lock(&self.migration) {
            Some(migration) if !migration.can_attach_xdp() => Err(DatapathError::Refused(
                "flows move over from another layout, whose XDP program is not known: start with the hook that was used before, and change it in a start after that".to_owned(),
            )),
            _ => Ok(()),
        }
    }
}
