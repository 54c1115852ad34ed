// reprise rm: forgets tasks.

import { forgetTask } from "../../store/lifecycle.ts";

export async function remove(
  names: readonly string[],
  options: { force?: boolean },
): Promise<void> {
  for (const name of names) {
    await forgetTask(name, { force: options.force === true });
    process.stdout.write(`${name} removed\n`);
  }
}
