//! A freeze: services that refuse every write but a rollback.

use super::{
    controller::{ControlError, WriteContext},
    reconciler::{Core, Reconciler, lock},
    write::{find, nothing_changed},
};
use crate::store::Frozen;

/// Stands for all services, those to come too.
pub const ALL: &str = "*";

impl Reconciler {
    /// Reads what is frozen.
    pub(super) fn load_frozen(&self, core: &mut Core) {
        match core.store.frozen() {
            Ok(frozen) => {
                let by_name = frozen.into_iter().map(|it| (it.service.clone(), it));
                core.frozen = by_name.collect();
            }
            Err(error) => core
                .warnings
                .push(format!("what is frozen is not known: {error}")),
        }
    }

    /// Refuses a write on a frozen service.
    pub(super) fn check_frozen(&self, core: &Core, name: &str) -> Result<(), ControlError> {
        let frozen = [name, ALL]
            .into_iter()
            .find_map(|name| core.frozen.get(name));
        match frozen {
            None => Ok(()),
            Some(frozen) => Err(ControlError::Frozen(format!(
                "{what} frozen by {actor}{reason}: nothing but a rollback is let through; `shifter unfreeze {whom}` ends it",
                what = match frozen.service.as_str() {
                    ALL => "all services are".to_owned(),
                    name => format!("service {name:?} is"),
                },
                actor = frozen.actor,
                reason = match frozen.reason.as_str() {
                    "" => String::new(),
                    reason => format!(" ({reason})"),
                },
                whom = match frozen.service.as_str() {
                    ALL => "--all",
                    name => name,
                },
            ))),
        }
    }

    /// Freezes a service, or all of them.
    pub(super) fn do_freeze(&self, name: &str, context: &WriteContext) -> Result<(), ControlError> {
        let mut core = lock(&self.core);
        if name != ALL {
            find(&core.services, name)?;
        }
        let frozen = Frozen {
            service: name.to_owned(),
            at_unix_ms: self.clock.unix_ms(),
            actor: context.actor.clone(),
            reason: context.reason.clone(),
        };
        core.store.freeze(&frozen).map_err(nothing_changed)?;
        tracing::warn!(service = name, actor = context.actor, "frozen");
        core.frozen.insert(name.to_owned(), frozen);
        self.audit_only(&mut core, name, "freeze", context);
        self.tell_of(&core, name);
        Ok(())
    }

    /// Lets writes through again.
    pub(super) fn do_unfreeze(
        &self,
        name: &str,
        context: &WriteContext,
    ) -> Result<(), ControlError> {
        let mut core = lock(&self.core);
        if name != ALL {
            find(&core.services, name)?;
        }
        if !core.frozen.contains_key(name) {
            let all = match core.frozen.contains_key(ALL) {
                true => "; but all services are: `shifter unfreeze --all`",
                false => "",
            };
            return Err(ControlError::Precondition(match name {
                ALL => "the services are not frozen all together: name one".to_owned(),
                name => format!("service {name:?} is not frozen by itself{all}"),
            }));
        }
        core.store.unfreeze(name).map_err(nothing_changed)?;
        tracing::info!(service = name, actor = context.actor, "unfrozen");
        core.frozen.remove(name);
        self.audit_only(&mut core, name, "unfreeze", context);
        self.tell_of(&core, name);
        Ok(())
    }

    fn tell_of(&self, core: &Core, name: &str) {
        match name {
            ALL => core
                .services
                .keys()
                .for_each(|name| self.events.push(name, false)),
            name => self.events.push(name, false),
        }
    }
}
