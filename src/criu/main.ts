import { CRIU_VERSION } from "../version.ts";
process.stdout.write(`Version: ${CRIU_VERSION.major}.${CRIU_VERSION.minor}\n`);
