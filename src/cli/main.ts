import { PACKAGE_VERSION } from "../version.ts";
process.stdout.write(`${PACKAGE_VERSION}\n`);
