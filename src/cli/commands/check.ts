// reprise check: what this kernel and this machine allow, line by line, and what to do about the rest.

import { statfsSync } from "node:fs";
import { resolve } from "node:path";
import { containerToolFacts } from "../../containers/tools.ts";
import { probeAll, type Category } from "../../kernel/features.ts";
import { machineFacts, purposeOf, type MachineFact } from "../../kernel/machine.ts";
import { makeDirectories } from "../../images/make-directories.ts";
import { homeDirectory } from "../../store/home.ts";
import { bytesText, table } from "../text.ts";

/** Returns the exit code: 0 when everything that is needed always is there. */
export function check(): number {
  const facts = [
    ...machineFacts(),
    homeFact(),
    ...containerToolFacts(ownCriu()),
    ...featureFacts(),
  ];
  const rows = facts.map(({ name, purpose, needed, fault }) => [
    fault === undefined ? "ok" : needed ? "NO" : "no",
    name,
    purpose,
    fault ?? "",
  ]);
  process.stdout.write(table(["HERE", "WHAT", "NEEDED FOR", "WHY NOT, WHAT TO DO"], rows));
  const good = facts.every(({ needed, fault }) => !needed || fault === undefined);
  process.stdout.write(
    good
      ? "\nCheckpoints work here.\n"
      : "\nCheckpoints do not work here: see what is marked NO.\n",
  );
  return good ? 0 : 1;
}

/** bin/criu beside the bin/reprise that started this program in dist/. */
function ownCriu(): string {
  return resolve(process.argv[1] ?? "", "../../bin/criu");
}

function featureFacts(): MachineFact[] {
  const categories: readonly Category[] = ["basic", "extra", "experimental"];
  return categories.flatMap((category) =>
    probeAll([category]).map(({ name, supported, reason }) => ({
      name,
      purpose: purposeOf(name),
      needed: category === "basic",
      fault: supported ? undefined : `${reason}. ${adviceAbout(reason)}`,
    })),
  );
}

/** What kind of reason it is tells what helps. */
function adviceAbout(reason: string): string {
  if (/EPERM|EACCES|permission denied/i.test(reason)) return "Run it as root";
  if (reason.includes("was built without")) return "Only another kernel has it";
  if (reason.includes("is not installed")) return "Install it";
  return "A newer kernel may have it";
}

const ENOUGH_BYTES = 100 * 1024 * 1024;

/** Where checkpoints go, and whether there is room. */
function homeFact(): MachineFact {
  const home = homeDirectory();
  const fact = { name: "home", purpose: `checkpoints, in ${home}`, needed: true };
  try {
    makeDirectories(home, 0o700);
    const { bavail, bsize } = statfsSync(home);
    if (bavail * bsize >= ENOUGH_BYTES) return { ...fact, fault: undefined };
    const free = bytesText(bavail * bsize);
    return {
      ...fact,
      needed: false,
      fault: `only ${free} are free. Make room or set REPRISE_HOME`,
    };
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    return { ...fact, fault: `cannot be made: ${code}. Set REPRISE_HOME to another directory` };
  }
}
