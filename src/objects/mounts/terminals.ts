// Terminals that are mounted (a container's /dev/console): their ptys are there only when the files have been opened.

import { RepriseError } from "../../errors.ts";
import { AT_FDCWD } from "../../sys/abi/fcntl.ts";
import * as abi from "../../sys/abi/mount.ts";
import type { Program } from "../../tracee/program.ts";
import { pathArgument } from "../files/path.ts";
import { ALL_ATTRIBUTES, bind, move, setAttributes } from "./calls.ts";
import { joinPath } from "./external.ts";
import type { NamespacePlan } from "./plan.ts";
import { attributesOf } from "./record.ts";

/**
 * Adds the calls that mount terminals (a container's /dev/console), in their own mount namespace, once their ptys have been made.
 *
 * @throws RepriseError UNSUPPORTED when their devpts is not mounted there
 */
export function mountTerminals(program: Program, { mounts }: NamespacePlan): void {
  for (const node of mounts.filter(({ isTerminal }) => isTerminal)) {
    const { entry, source, below } = node;
    const whole = mounts.find((one) => one.source === source && one.below === "");
    if (whole === undefined) {
      throw new RepriseError(
        "UNSUPPORTED",
        `cannot restore the mount ${entry.mountpoint}: the file system of its terminal is mounted nowhere`,
      );
    }
    const path = joinPath(whole.entry.mountpoint, below);
    const fd = bind(program, AT_FDCWD, { below: path, what: entry.mountpoint });
    const set = attributesOf(entry);
    const attributes = { set, clear: ALL_ATTRIBUTES, propagation: abi.MS_PRIVATE };
    setAttributes(program, fd, attributes, entry.mountpoint);
    const place = pathArgument(program, entry.mountpoint);
    move(program, fd, { to: AT_FDCWD, place, what: entry.mountpoint });
    program.call("close", [fd]);
  }
}
