'use strict';

// Chromium over TLS: it takes HTTP/2 for a WebSocket where it has an HTTP/2 connection that allows it.

const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { after, before, describe, it } = require('node:test');
const { DEADLINE_MS, startGateway } = require('./gateway');

const CHROMIUM = process.env.CHROMIUM || '/usr/bin/chromium';

/** Whether what it takes is there; `scripts/test tools` gets it. */
function reasonToSkip() {
  if (!fs.existsSync(CHROMIUM)) return `there is no ${CHROMIUM}`;
  try {
    require.resolve('playwright-core');
  } catch {
    return 'playwright-core is not installed';
  }
  return false;
}

describe('Chromium', { timeout: 8 * DEADLINE_MS, skip: reasonToSkip() }, () => {
  let directory;
  let gateway;
  let browser;
  before(async () => {
    directory = fs.mkdtempSync(path.join(process.env.TEST_DIRECTORY || os.tmpdir(), 'chromium-'));
    const [cert, key] = ['tls.crt', 'tls.key'].map((name) => path.join(directory, name));
    const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'];
    const kind = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
    const files = ['-keyout', key, '-out', cert];
    execFileSync('openssl', ['req', '-x509', ...kind, ...subject, ...files], { stdio: 'ignore' });
    gateway = await startGateway(`--tls-cert=${cert}`, `--tls-key=${key}`);
    const { chromium } = require('playwright-core');
    const args = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run'];
    args.push('--disable-background-networking', '--disable-component-update', '--disable-sync');
    const timeout = 4 * DEADLINE_MS;
    browser = await chromium.launch({ executablePath: CHROMIUM, headless: true, args, timeout });
  });
  after(async () => {
    await browser?.close();
    await gateway?.stop();
    fs.rmSync(directory, { recursive: true });
  });

  it('speaks WebSocket over HTTP/2', async () => {
    const context = await browser.newContext({ ignoreHTTPSErrors: true });
    const page = await context.newPage();
    const host = `localhost:${gateway.address.split(':')[1]}`;
    // Makes the HTTP/2 connection.
    await page.goto(`https://${host}/`);
    assert.equal(await page.title(), 'wsgate console');
    const heard = await page.evaluate(async (url) => {
      const socket = new WebSocket(url);
      const next = (name) =>
        new Promise((resolve, reject) => {
          socket.addEventListener(name, resolve, { once: true });
          socket.addEventListener('error', () => reject(new Error('refused')), { once: true });
        });
      await next('open');
      const long = 'wsgate '.repeat(2_000);
      const heard = [];
      for (const text of ['hello', long]) {
        socket.send(text);
        heard.push((await next('message')).data === text);
      }
      const { extensions } = socket;
      socket.close(1000, 'enough');
      const { code, wasClean } = await next('close');
      return { heard, extensions, code, wasClean };
    }, `wss://${host}/echo`);
    assert.deepEqual(heard.heard, [true, true]);
    assert.match(heard.extensions, /permessage-deflate/);
    assert.equal(heard.code, 1000);
    assert.equal(heard.wasClean, true);
    const metrics = await (await fetch(`http://${gateway.adminAddress}/metrics`)).text();
    assert.match(metrics, /^wsgate_handshakes_total\{http="2"\} 1$/m);
    assert.match(metrics, /^wsgate_handshakes_total\{http="1.1"\} 0$/m);
    await context.close();
  });
});
