// `criu lazy-pages`: fills the memory of a `restore --lazy-pages`, from the images or from a page server.

import { serveLazyPages } from "../engine/lazy-pages.ts";
import type { CriuOptions } from "./options.ts";
import { pageServerPlace, tellReady } from "./page-options.ts";
import type { Directories } from "./paths.ts";
import { readyScripts } from "./scripts.ts";

/** Runs the action. Returns the exit code. */
export async function lazyPagesAction(
  options: CriuOptions,
  directories: Directories,
): Promise<number> {
  if (options.flags.has("restore-detached")) {
    const { startDaemon } = await import("./daemon.ts");
    return startDaemon(options, directories);
  }
  const runScripts = readyScripts(options, directories);
  const pageServer = await pageServerPlace(options);
  serveLazyPages({
    imagesDir: directories.imagesDir,
    workDir: directories.workDir,
    onReady: () => {
      runScripts();
      tellReady(options);
    },
    ...(pageServer === undefined ? {} : { pageServer }),
  });
  return 0;
}
