// Binds and searches with ldapjs, as Node applications do, and prints the values found, one a line.
// Arguments: ldaps|starttls HOST PORT CA NAME PASSWORD BASE FILTER ATTRIBUTE
"use strict";

const fs = require("fs");
const { promisify } = require("util");
const ldap = require("ldapjs");

const [mode, host, port, ca, name, password, base, filter, attribute] = process.argv.slice(2);

async function main() {
  const tlsOptions = { host, ca: [fs.readFileSync(ca)] };
  const client = ldap.createClient({
    url: `${mode === "ldaps" ? "ldaps" : "ldap"}://${host}:${port}`, tlsOptions, timeout: 30000, connectTimeout: 30000,
  });
  const lost = new Promise((_, reject) => client.on("error", reject));
  const call = (method) => (...given) => Promise.race([promisify(client[method]).apply(client, given), lost]);
  if (mode === "starttls") {
    await call("starttls")(tlsOptions, []);
  }
  await call("bind")(name, password);
  const answer = await call("search")(base, { scope: "sub", filter, attributes: [attribute] });
  await Promise.race([lost, new Promise((resolve, reject) => {
    answer.on("searchEntry", (entry) => console.log(entry.object[attribute]));
    answer.on("error", reject);
    answer.on("end", resolve);
  })]);
  client.destroy();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
