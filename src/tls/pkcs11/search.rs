//! Finds the token and the key a URI names; says what there is where it finds none.

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;

use super::error::TokenError;
use super::mechanism::PublicKey;
use super::module::Opened;
use crate::config::TokenKey;

/// A logged-in session in which the key was found.
pub(super) fn open(
    library: &Pkcs11,
    wanted: &TokenKey,
    pin: Option<&AuthPin>,
    public_key: &PublicKey,
) -> Result<(Opened, Vec<MechanismType>), TokenError> {
    let (slot, token) = find_token(library, wanted)?;
    let session = library.open_ro_session(slot)?;
    log_in(&session, &token, pin)?;
    let key = find_key(&session, wanted, public_key)?;
    Ok((Opened { session, key }, library.get_mechanism_list(slot)?))
}

fn find_token(library: &Pkcs11, wanted: &TokenKey) -> Result<(Slot, TokenInfo), TokenError> {
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for slot in library.get_slots_with_initialized_token()? {
        // A token may leave while its neighbours are looked at.
        let Ok(token) = library.get_token_info(slot) else { continue };
        seen.push(format!("token={};serial={};slot-id={}", token.label(), token.serial_number(), slot.id()));
        let is = |wanted: &Option<String>, has: &str| wanted.as_deref().is_none_or(|wanted| wanted == has);
        if is(&wanted.token, token.label())
            && is(&wanted.manufacturer, token.manufacturer_id())
            && is(&wanted.model, token.model())
            && is(&wanted.serial, token.serial_number())
            && wanted.slot.is_none_or(|wanted| wanted == slot.id())
        {
            found.push((slot, token));
        }
    }
    let there = if seen.is_empty() { "the module has none".into() } else { format!("it has {}", seen.join(", ")) };
    match found.len() {
        1 => Ok(found.swap_remove(0)),
        0 => Err(TokenError::lost(format!("no token matches {}", wanted.uri), there)),
        many => {
            let message = format!("{many} tokens match {}", wanted.uri);
            Err(TokenError::new("private_key", message, format!("add serial= or slot-id=: {there}")))
        }
    }
}

/// Sessions of one process share their login, so that only the first one shows the PIN.
fn log_in(session: &Session, token: &TokenInfo, pin: Option<&AuthPin>) -> Result<(), TokenError> {
    let Some(pin) = pin else {
        return if token.login_required() {
            let help = "name a file that holds it in private_key_passphrase_file";
            Err(TokenError::new("private_key", format!("the token {} asks for a PIN", token.label()), help))
        } else {
            Ok(())
        };
    };
    if token.user_pin_final_try() {
        return Err(TokenError::pin(format!(
            "the token {} takes one more PIN before it locks, and that one is left to you: once \
             pkcs11-tool --login --list-objects accepts it, so will this",
            token.label()
        )));
    }
    match session.login(UserType::User, Some(pin)) {
        Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        other => Ok(other?),
    }
}

fn find_key(session: &Session, wanted: &TokenKey, public_key: &PublicKey) -> Result<ObjectHandle, TokenError> {
    let all = [Attribute::Class(ObjectClass::PRIVATE_KEY)];
    let label = wanted.object.as_ref().map(|label| Attribute::Label(label.as_bytes().to_vec()));
    let id = wanted.id.clone().map(Attribute::Id);
    let template: Vec<_> = all.iter().cloned().chain(label).chain(id).collect();
    let found = session.find_objects(&template)?;
    let key = match found[..] {
        [key] => key,
        [] => {
            let there: Vec<_> = session.find_objects(&all)?.into_iter().map(|key| describe(session, key)).collect();
            let help =
                if there.is_empty() { "the token shows none".into() } else { format!("it has {}", there.join(", ")) };
            return Err(TokenError::new("private_key", format!("no private key matches {}", wanted.uri), help));
        }
        _ => {
            let there: Vec<_> = found.iter().map(|key| describe(session, *key)).collect();
            let message = format!("{} private keys match {}", found.len(), wanted.uri);
            return Err(TokenError::new("private_key", message, format!("name one by its id: {}", there.join(", "))));
        }
    };
    for attribute in session.get_attributes(key, &[AttributeType::KeyType, AttributeType::AlwaysAuthenticate])? {
        match attribute {
            Attribute::KeyType(has) if has != public_key.key_type() => {
                let message = format!("the token's key is {has}, the certificate's {}", public_key.key_type());
                return Err(TokenError::new("private_key", message, "name the certificate's own key"));
            }
            Attribute::AlwaysAuthenticate(true) => {
                let help = "make one without CKA_ALWAYS_AUTHENTICATE, for a server can't be asked each time";
                return Err(TokenError::new("private_key", "the key wants its PIN again for each signature", help));
            }
            _ => {}
        }
    }
    Ok(key)
}

/// A key as it would be written in a URI.
fn describe(session: &Session, key: ObjectHandle) -> String {
    let attributes = session.get_attributes(key, &[AttributeType::Label, AttributeType::Id]).unwrap_or_default();
    let parts: Vec<_> = attributes
        .iter()
        .filter_map(|attribute| match attribute {
            Attribute::Label(label) => Some(format!("object={}", String::from_utf8_lossy(label).escape_debug())),
            Attribute::Id(id) => {
                let encoded: String = id.iter().map(|octet| format!("%{octet:02x}")).collect();
                Some(format!("id={encoded}"))
            }
            _ => None,
        })
        .collect();
    parts.join(";")
}
