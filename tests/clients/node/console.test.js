'use strict';

const assert = require('node:assert/strict');
const { once } = require('node:events');
const net = require('node:net');
const { after, before, describe, it } = require('node:test');
const { startBrowser } = require('./browser');
const { DEADLINE_MS, makeToken, startGateway, startProxy, until } = require('./gateway');

const PHONE = { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true };

describe('the console page', { timeout: 20 * DEADLINE_MS }, () => {
  let browser;
  let gateway;
  before(async () => {
    browser = await startBrowser();
    gateway = await startGateway();
  });
  after(async () => {
    await browser?.stop();
    await gateway?.stop();
  });

  it('connects to the echo, and gets back what it sends', async () => {
    const page = await browser.open(gateway);
    assert.equal(await page.state(), 'not connected');
    assert.equal(await page.field('Address').inputValue(), `ws://${gateway.address}/channels/demo`);
    await page.connect('');
    assert.equal(await page.field('Address').inputValue(), `ws://${gateway.address}/echo`);
    await page.send('grüß dich 🦀');
    assert.deepEqual(await page.read(2), [
      ['you', 'echo', 'grüß dich 🦀'],
      ['echo', 'you', 'grüß dich 🦀'],
    ]);
    await page.says('1 message, 16 B');
    assert.equal(await page.field('Text').inputValue(), '');
    const time = page.page.locator('#rows time').first();
    assert.match(await time.innerText(), /^\d\d:\d\d:\d\d\.\d{3}$/);
    await page.leave();
  });

  it('chats with another one on a channel whose name is of any letters', async () => {
    const name = 'a room/100% für uns?#';
    const [one, other] = [await browser.open(gateway), await browser.open(gateway)];
    await one.connect(name);
    await other.connect(name);
    await one.send('hello');
    assert.deepEqual(await other.read(1), [[`channel ${name}`, 'you', 'hello']]);
    await other.send('hello yourself');
    assert.deepEqual((await one.read(3))[2], [`channel ${name}`, 'you', 'hello yourself']);
    const { channels } = (await gateway.api('channels', {})).result;
    assert.deepEqual(channels[name], { num_clients: 2 });
    await one.leave();
    await other.leave();
  });

  it('writes a name into the address key by key, whatever dots it has', async () => {
    const page = await browser.open(gateway);
    const [address, channel] = [page.field('Address'), page.field('Channel')];
    const complaint = page.page.locator('#channel-complaint');
    const last = `ws://${gateway.address}/channels/demo`;
    for (const name of ['.n', '..n', './/..', '%2e']) {
      await channel.fill('demo');
      await channel.press('ControlOrMeta+a');
      for (let typed = 1; typed <= name.length; typed++) {
        const part = name.slice(0, typed);
        await channel.press(name[typed - 1]);
        const isFolder = part === '.' || part === '..';
        assert.equal(await complaint.innerText() !== '', isFolder, part);
        assert.equal(await channel.getAttribute('aria-invalid'), isFolder ? 'true' : null, part);
        const written = isFolder ? last : `ws://${gateway.address}/channels/${encodeURIComponent(part)}`;
        assert.equal(await address.inputValue(), written);
      }
      await page.button('Connect').click();
      await page.until('open');
      await page.send('hello');
      assert.deepEqual((await page.read(2))[0], ['you', `channel ${name}`, 'hello']);
      const { channels } = (await gateway.api('channels', {})).result;
      assert.ok(name in channels, `${name} in ${JSON.stringify(channels)}`);
      await page.button('Close Connection').click();
      await page.until('closed');
      await page.button('Clear Log').click();
    }
    await page.leave();
  });

  it('connects nowhere for a name that no address can hold', async () => {
    const page = await browser.open(gateway);
    for (const [name, words] of [
      ['.', 'it takes it for a folder'],
      ['..', 'it takes it for a folder'],
      ['\ud83e', 'it has half a character'],
    ]) {
      // A key of an input method may be half a character, where Playwright's are whole.
      await page.field('Channel').evaluate((input, value) => {
        input.value = JSON.parse(value);
        input.dispatchEvent(new Event('input', { bubbles: true }));
      }, JSON.stringify(name));
      await page.says(words);
      await page.button('Connect').click();
      assert.equal(await page.page.evaluate(() => document.activeElement.id), 'channel');
      assert.equal(await page.state(), 'not connected');
    }
    await page.field('Address').fill(`ws://${gateway.address}/channels/news`);
    assert.equal(await page.field('Channel').inputValue(), 'news');
    assert.equal(await page.page.locator('[aria-invalid]').count(), 0);
    await page.leave();
  });

  it('takes all behind the first channels/ for the name of the channel', async () => {
    const page = await browser.open(gateway);
    const [address, channel] = [page.field('Address'), page.field('Channel')];
    await address.fill(`ws://${gateway.address}/channels/a/channels/b`);
    assert.equal(await channel.inputValue(), 'a/channels/b');
    await channel.fill('c');
    assert.equal(await address.inputValue(), `ws://${gateway.address}/channels/c`);
    await address.fill(`ws://${gateway.address}/channels/a/channels/b`);
    await page.button('Connect').click();
    await page.until('open');
    await page.send('hello');
    assert.deepEqual((await page.read(2))[0], ['you', 'channel a/channels/b', 'hello']);
    const { channels } = (await gateway.api('channels', {})).result;
    assert.deepEqual(channels['a/channels/b'], { num_clients: 1 });
    // Of another host nobody knows where its gateway is.
    await address.fill('ws://example.com/live/channels/a/channels/b');
    assert.equal(await channel.inputValue(), 'a/channels/b');
    await channel.fill('c');
    assert.equal(await address.inputValue(), 'ws://example.com/live/channels/c');
    await page.leave();
  });

  it('finds the gateway below a path, even one that looks like a channel', async (test) => {
    const proxy = await startProxy(gateway, '/channels');
    test.after(() => proxy.stop());
    const page = await browser.open(proxy);
    const [address, channel] = [page.field('Address'), page.field('Channel')];
    assert.equal(await address.inputValue(), `ws://${proxy.address}/channels/demo`);
    assert.equal(await channel.inputValue(), 'demo');
    await channel.fill('');
    assert.equal(await address.inputValue(), `ws://${proxy.address}/echo`);
    await channel.fill('channels/news');
    assert.equal(await address.inputValue(), `ws://${proxy.address}/channels/channels%2Fnews`);
    await page.button('Connect').click();
    await page.until('open');
    await page.send('hello');
    await page.read(2);
    const { channels } = (await gateway.api('channels', {})).result;
    assert.deepEqual(channels['channels/news'], { num_clients: 1 });
    await page.leave();
  });

  it('closes its connection, and connects again when told to', async () => {
    const page = await browser.open(gateway);
    await page.connect('');
    await page.button('Close Connection').click();
    await page.until('closed');
    await page.says('Closed with 1000 normal closure. You closed it.');
    await page.button('Connect').click();
    await page.until('open');
    assert.deepEqual((await page.events()).slice(1), [
      ['gateway', 'you', 'open, with permessage-deflate'],
      ['you', 'gateway', 'Close 1000 normal closure'],
      ['gateway', 'you', 'closed: 1000 normal closure'],
      ['you', 'gateway', `opening handshake: ws://${gateway.address}/echo`],
      ['gateway', 'you', 'open, with permessage-deflate'],
    ]);
    await page.leave();
  });

  it('says that it sent no Close, where it was closed before it was open', async (test) => {
    const page = await browser.open(gateway);
    const heard = [];
    // Takes a request, and never answers it.
    const server = net.createServer((socket) => {
      socket.on('data', (data) => heard.push(data));
      socket.on('error', () => {});
      socket.on('close', () => server.emit('left'));
    });
    server.listen(0, '127.0.0.1');
    test.after(() => server.close());
    await once(server, 'listening');
    const left = once(server, 'left', { signal: AbortSignal.timeout(DEADLINE_MS) });
    const url = `ws://127.0.0.1:${server.address().port}/echo`;
    await page.field('Address').fill(url);
    await page.button('Connect').click();
    await until(() => Buffer.concat(heard).includes('\r\n\r\n'), 'the request comes');
    assert.equal(await page.state(), 'connecting');
    await page.button('Close Connection').click();
    await page.until('closed');
    await page.says('Closed before it was open.');
    await page.says('gave up the opening handshake');
    assert.deepEqual(await page.events(), [
      ['you', 'gateway', `opening handshake: ${url}`],
      ['you', 'gateway', 'gave up the opening handshake'],
    ]);
    await left;
    assert.match(Buffer.concat(heard).toString('latin1'), /\r\n\r\n$/);
    await page.leave();
  });

  it('says with which code and reason the gateway closed, and does not come back unasked', async () => {
    const page = await browser.open(gateway);
    await page.field('Address').fill(`ws://${gateway.address}/echo?hello=true`);
    await page.button('Connect').click();
    const [[, , hello]] = await page.read(1);
    const { connection } = JSON.parse(hello);
    await gateway.api('disconnect', { connection, code: 4001, reason: 'see <you> later' });
    await page.until('closed');
    await page.says("Closed with 4001 a code of the application's own. Reason: “see <you> later”.");
    await page.leave();
  });

  it('says that a message was too big', async () => {
    const page = await browser.open(gateway);
    await page.connect('');
    await page.send('x'.repeat(64 * 1024 + 1));
    await page.until('closed');
    await page.says('Closed with 1009 too big: a message larger than the gateway takes');
    await page.says('cut: text of 65,537 characters');
    await page.leave();
  });

  it('says that nothing was sent without a connection, and keeps the message', async () => {
    const page = await browser.open(gateway);
    const notice = page.page.getByRole('alert');
    await page.send('to nobody');
    await page.says('Not sent: there is no connection. Press Connect first.');
    assert.equal(await page.field('Text').inputValue(), 'to nobody');
    assert.deepEqual(await page.messages(), []);
    await page.button('Send File').click();
    await page.says('Not sent: there is no connection.');
    await page.connect('demo');
    await until(async () => (await notice.innerText()) === '', 'the complaint goes');
    await page.button('Close Connection').click();
    await page.until('closed');
    await page.button('Send Message').click();
    await page.says('Not sent: there is no connection.');
    await page.screenshot('not-sent');
    await page.leave();
  });

  it('shows HTML as the text that it is', async () => {
    const hostile = [
      '<img src=x onerror="document.title=1;alert(1)">',
      '<script>document.title = 2; alert(2)</script>',
      '</td></tr></table><style>body { display: none }</style><iframe src="javascript:alert(3)">',
      '<a href="javascript:alert(4)">here</a>',
      '"><svg/onload=alert(5)>',
      '{{constructor.constructor("alert(6)")()}}',
      '\u202etxet sdrawkcab',
    ];
    const page = await browser.open(gateway);
    // As the one who sends, as the one who gets, and as the name of the channel.
    await page.connect('<img src=x onerror=alert(0)>');
    const peer = 'channel <img src=x onerror=alert(0)>';
    for (const text of hostile) {
      await gateway.api('publish', { channel: '<img src=x onerror=alert(0)>', data: text });
    }
    await page.send(hostile[0]);
    const shown = await page.read(hostile.length + 2);
    assert.deepEqual(shown.slice(0, hostile.length), hostile.map((text) => [peer, 'you', text]));
    assert.equal(await page.page.title(), 'wsgate console');
    const elements = '#rows img, #rows script, #rows style, #rows iframe, #rows a, #rows svg';
    assert.equal(await page.page.locator(elements).count(), 0);
    // Nothing was even tried: the page's policy has refused nothing, and there was no dialog.
    await page.leave();
  });

  it('sends a file as one binary message', async () => {
    const page = await browser.open(gateway);
    await page.connect('');
    await page.button('Send File').click();
    await page.says('Not sent: choose a file first.');
    await page.field('File, sent as one binary message').setInputFiles({
      name: '<b>bytes</b>.bin',
      mimeType: 'application/octet-stream',
      buffer: Buffer.from([0, 1, 127, 128, 255]),
    });
    await page.button('Send File').click();
    assert.deepEqual(await page.read(2), [
      ['you', 'echo', '00 01 7f 80 ff\nbinary of 5 bytes, file “<b>bytes</b>.bin”'],
      ['echo', 'you', '00 01 7f 80 ff\nbinary of 5 bytes'],
    ]);
    await page.leave();
  });

  it('keeps the latest thousand rows, and counts all', async () => {
    const page = await browser.open(gateway);
    await page.connect('flood');
    const sender = await gateway.connect('/channels/flood');
    for (let number = 1; number <= 1500; number++) sender.send(`message ${number}`);
    await page.says('message 1500');
    await page.says('1,500 messages, 16.5 KiB');
    assert.equal(await page.page.locator('#rows tr').count(), 1000);
    assert.deepEqual((await page.messages())[0], ['channel flood', 'you', 'message 501']);
    await page.button('Clear Log').click();
    assert.equal(await page.page.locator('#rows tr').count(), 0);
    await sender.close();
    await page.leave();
  });

  it('says that a handshake was refused, and does not try again', async () => {
    const page = await browser.open(gateway);
    await page.field('Address').fill(`ws://${gateway.address}/nothing`);
    await page.button('Connect').click();
    await page.until('closed');
    await page.says('the handshake was refused');
    for (const [field, value, words] of [
      ['Address', 'ftp://example.com/', 'The address is not of the form'],
      ['Subprotocol', 'a b"c', '“b"c” cannot be a subprotocol'],
      ['Token', 'not a token', 'This token cannot be sent'],
      ['Channel', '..', 'A browser cannot ask for a channel of this name'],
    ]) {
      const before = await page.field(field).inputValue();
      await page.field(field).fill(value);
      await page.button('Connect').click();
      await page.says(words);
      assert.equal(await page.page.evaluate(() => document.activeElement.ariaInvalid), 'true');
      await page.field(field).fill(before);
      if (field === 'Channel') await page.field(field).fill('demo');
    }
    await page.leave();
  });

  it('complains about the one field for which Connect was refused, until that one changes', async () => {
    const page = await browser.open(gateway);
    const complaints = async () =>
      (await page.page.locator('.complaint, #notice').allInnerTexts()).filter((words) => words !== '');
    await page.field('Subprotocol').fill('chat, chat');
    await page.button('Connect').click();
    await page.says('None may stand twice.');
    await page.field('Token').fill('not a token');
    await page.button('Connect').click();
    await page.says('This token cannot be sent');
    await until(async () => /^This token/.test(await complaints()), 'the first complaint goes');
    await page.field('Address').fill('ftp://example.com/');
    await page.button('Connect').click();
    await page.says('The address is not of the form');
    assert.match(String(await complaints()), /^The address/);
    const described = await page.field('Address').getAttribute('aria-describedby');
    assert.match(await page.page.locator(`#${described}`).innerText(), /^The address is not/);
    await page.screenshot('refused');
    await page.field('Address').fill(`ws://${gateway.address}/echo`);
    assert.deepEqual(await complaints(), []);
    assert.equal(await page.page.locator('[aria-invalid]').count(), 0);
    await page.leave();
  });

  it('says that the server may have selected no subprotocol, where that can be why', async () => {
    const page = await browser.open(gateway);
    const selectedNone = page.page.getByText('the server selected none of the subprotocols');
    for (const [path, subprotocol, token, isSaid] of [
      ['/echo', 'chat', '', true],
      ['/echo', 'chat, bearer', '', true],
      ['/nothing', '', '', false],
      ['/nothing', 'chat', 'head.body.signature', false],
      ['/nothing', 'bearer, head.body.signature', '', false],
    ]) {
      await page.field('Address').fill(`ws://${gateway.address}${path}`);
      await page.field('Subprotocol').fill(subprotocol);
      await page.field('Token').fill(token);
      await page.button('Clear Log').click();
      await page.button('Connect').click();
      await page.page.locator('tr.event', { hasText: 'no connection' }).waitFor();
      await page.says('the handshake was refused');
      assert.equal(await selectedNone.count(), isSaid ? 1 : 0, `${subprotocol} at ${path}`);
    }
    await page.leave();
  });

  it('offers subprotocols and the token as a pair, and keeps no token', async () => {
    const page = await browser.open(gateway);
    const offered = new Promise((resolve) => {
      page.page.on('websocket', (socket) => resolve(socket.url()));
    });
    await page.page.evaluate(() => {
      const Native = window.WebSocket;
      window.offered = [];
      window.WebSocket = class extends Native {
        constructor(url, protocols) {
          super(url, protocols);
          window.offered.push(protocols);
        }
      };
    });
    await page.field('Subprotocol').fill('chat, superchat');
    await page.field('Token').fill('head.body.signature');
    await page.field('Address').fill(`ws://${gateway.address}/echo?token=sesame`);
    await page.button('Connect').click();
    await offered;
    assert.deepEqual(await page.page.evaluate(() => window.offered), [
      ['chat', 'superchat', 'bearer', 'head.body.signature'],
    ]);
    // Neither in a place that outlives the page nor where others look at it.
    const left = await page.page.evaluate(() =>
      JSON.stringify([{ ...sessionStorage }, { ...localStorage }, document.cookie, location.href]));
    assert.doesNotMatch(left, /signature|sesame/);
    assert.match(left, /superchat/);
    await page.page.reload();
    assert.equal(await page.field('Token').inputValue(), '');
    assert.equal(await page.field('Address').inputValue(), `ws://${gateway.address}/echo`);
    await page.leave();
  });

  it('keeps no token that stands among the subprotocols', async () => {
    const page = await browser.open(gateway);
    const left = () => page.page.evaluate(() =>
      JSON.stringify([{ ...sessionStorage }, { ...localStorage }, document.cookie, location.href]));
    await page.field('Channel').fill('news');
    for (const [subprotocol, kept] of [
      ['chat', 'chat'],
      ['chat, bearer, head.body.signature', ''],
      ['base64url.bearer.authorization.k8s.io.signature', ''],
    ]) {
      await page.field('Subprotocol').fill(subprotocol);
      await page.button('Clear Log').click();
      await page.button('Connect').click();
      await page.page.locator('tr.event', { hasText: 'gateway' }).nth(1).waitFor();
      assert.doesNotMatch(await left(), /signature/);
      await page.page.reload();
      assert.equal(await page.field('Channel').inputValue(), 'news');
      assert.equal(await page.field('Subprotocol').inputValue(), kept);
    }
    await page.leave();
  });

  it('can be used with the keyboard alone', async () => {
    const page = await browser.open(gateway);
    const { keyboard } = page.page;
    const focused = () => page.page.evaluate(() => document.activeElement.id);
    const order = [
      'address', 'channel', 'subprotocol', 'token', 'reconnect', 'connect', 'close', 'message',
      'send', 'file', 'send-file', 'clear', 'scroller',
    ];
    for (const id of order) {
      await keyboard.press('Tab');
      assert.equal(await focused(), id);
      const outline = await page.page.evaluate(() => {
        const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
        return `${outlineStyle} ${outlineWidth}`;
      });
      assert.equal(outline, 'solid 3px', id);
    }
    for (const id of order.toReversed().slice(1)) {
      await keyboard.press('Shift+Tab');
      assert.equal(await focused(), id);
    }
    await keyboard.press('Enter');
    await page.until('open');
    while ((await focused()) !== 'message') await keyboard.press('Tab');
    await keyboard.type('first');
    await keyboard.press('Enter');
    await keyboard.type('second');
    await keyboard.press('Control+Enter');
    await keyboard.type('two');
    await keyboard.press('Shift+Enter');
    await keyboard.type('lines');
    await keyboard.press('Enter');
    const messages = await page.read(6);
    const sent = messages.filter(([from]) => from === 'you').map(([, , text]) => text);
    assert.deepEqual(sent, ['first', 'second', 'two\nlines']);
    while ((await focused()) !== 'close') await keyboard.press('Shift+Tab');
    await keyboard.press('Space');
    await page.until('closed');
    assert.equal(await focused(), 'close');
    await page.leave();
  });

  it('has a name for everything that can be used, and says what changes', async () => {
    const page = await browser.open(gateway);
    const nameless = await page.page.evaluate(() =>
      [...document.querySelectorAll('input, textarea, button')]
        .filter((element) => !(element.labels?.length || element.innerText.trim()))
        .map((element) => element.id));
    assert.deepEqual(nameless, []);
    const dangling = await page.page.evaluate(() =>
      [...document.querySelectorAll('[aria-describedby], [aria-labelledby], label[for]')]
        .flatMap((element) => ['aria-describedby', 'aria-labelledby', 'for'].map((name) => element.getAttribute(name)))
        .flatMap((ids) => ids?.split(' ') ?? [])
        .filter((id) => id && !document.getElementById(id)));
    assert.deepEqual(dangling, []);
    assert.equal(await page.page.locator('html').getAttribute('lang'), 'en');
    assert.equal(await page.page.getByRole('heading', { level: 1 }).count(), 1);
    assert.deepEqual(
      await page.page.getByRole('columnheader').allInnerTexts(),
      ['From', 'To', 'Content', 'Time'],
    );
    assert.equal(await page.page.locator('#state-words[role=status]').count(), 1);
    assert.equal(await page.page.locator('#notice[role=alert]').count(), 1);
    await page.leave();
  });

  for (const colorScheme of ['light', 'dark']) {
    it(`is readable where ${colorScheme} is preferred`, async () => {
      const page = await browser.open(gateway, { colorScheme, viewport: { width: 1280, height: 860 } });
      const friend = await browser.open(gateway);
      await page.connect('lobby');
      await friend.connect('lobby');
      await friend.send('Good morning! Is anyone on this channel?');
      await page.read(1);
      await page.send('Yes. What one sends, all on it get.');
      await page.read(3);
      await friend.send('{"order": 4711, "state": "shipped", "items": [1, 2, 3]}');
      await friend.send('<b onclick="alert(1)">A message is never HTML.</b>');
      await page.read(5);
      await page.field('File, sent as one binary message').setInputFiles({
        name: 'pixel.gif',
        mimeType: 'image/gif',
        buffer: Buffer.from('R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7', 'base64'),
      });
      await page.button('Send File').click();
      await page.read(7);
      // Every text against what lies behind it, by the rule of WCAG 2.1, section 1.4.3.
      const faint = await page.page.evaluate(() => {
        const channels = (color) => color.match(/[\d.]+/g).map(Number);
        const luminance = (color) => {
          const [r, g, b] = channels(color).slice(0, 3).map((value) => value / 255)
            .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const behind = (element) => {
          const color = getComputedStyle(element).backgroundColor;
          return (channels(color)[3] ?? 1) > 0 ? color : behind(element.parentElement);
        };
        return [...document.body.querySelectorAll('*')]
          .filter((element) => element.checkVisibility() && element.innerText?.trim())
          .map((element) => {
            const [one, other] = [getComputedStyle(element).color, behind(element)].map(luminance);
            const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
            return { what: element.id || element.innerText.slice(0, 40), ratio };
          })
          .filter(({ ratio }) => ratio < 4.5);
      });
      assert.deepEqual(faint, []);
      await page.screenshot(colorScheme);
      await page.leave();
      await friend.leave();
    });
  }

  it('fits on a phone, whatever is in the messages', async () => {
    const page = await browser.open(gateway, PHONE);
    await page.connect('lobby');
    await page.send(`https://example.com/${'long'.repeat(200)}`);
    await page.send('Hello from a phone.');
    await page.read(4);
    const widths = await page.page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
    assert.equal(widths[0], widths[1]);
    // Fingers need room.
    for (const name of ['Connect', 'Close Connection', 'Send Message', 'Send File']) {
      assert.ok((await page.button(name).boundingBox()).height >= 44, name);
    }
    await page.page.locator('#scroller').scrollIntoViewIfNeeded();
    await page.screenshot('phone-log');
    await page.page.evaluate(() => window.scrollTo(0, 0));
    await page.screenshot('phone');
    await page.leave();
  });
});

describe('the console page of a gateway that goes away', { timeout: 20 * DEADLINE_MS }, () => {
  let browser;
  before(async () => {
    browser = await startBrowser();
  });
  after(() => browser?.stop());

  it('waits for it, says for how long, and is connected again by itself', async (test) => {
    let gateway = await startGateway();
    const { address } = gateway;
    const page = await browser.open(gateway);
    await page.connect('');
    await gateway.stop();
    await page.says('Closed with 1001 going away');
    await page.says('Waiting for the gateway to come back: attempt');
    await until(async () => /^waiting to reconnect in \d+ s$/.test(await page.state()), 'the wait is told');
    await page.send('too early');
    await page.says('Not sent:');
    await page.screenshot('waiting');

    gateway = await startGateway(`--listen=${address}`);
    test.after(() => gateway.stop());
    await page.until('open');
    await page.button('Send Message').click();
    assert.deepEqual(await page.read(2), [
      ['you', 'echo', 'too early'],
      ['echo', 'you', 'too early'],
    ]);
    await page.leave();
  });

  it('waits longer each time, up to a bound, and never as long as another one', async () => {
    const gateway = await startGateway();
    const page = await browser.open(gateway);
    // The waits that the page asks for, all over at once.
    await page.page.evaluate(() => {
      const later = window.setTimeout;
      window.waits = [];
      window.setTimeout = (action, milliseconds) => {
        window.waits.push(milliseconds);
        return later(action, 0);
      };
    });
    await page.connect('');
    // Nobody is there, and the browser need not be asked a hundred times.
    await page.page.evaluate(() => {
      window.WebSocket = class {
        constructor() {
          queueMicrotask(() => this.onclose({ code: 1006, reason: '' }));
        }
      };
    });
    await gateway.stop();
    await page.says('Gave up after 100 attempts.');
    assert.equal(await page.state(), 'closed');
    const waits = await page.page.evaluate(() => window.waits);
    assert.equal(waits.length, 100);
    waits.forEach((milliseconds, attempt) => {
      const longest = Math.min(30_000, 500 * 2 ** attempt);
      assert.ok(milliseconds >= longest / 2 && milliseconds <= longest, `${attempt}: ${milliseconds}`);
    });
    assert.equal(new Set(waits).size, waits.length);
    await page.leave();
  });

  it('connects at once, or waits no longer, when told to', async () => {
    const gateway = await startGateway();
    const page = await browser.open(gateway);
    await page.neverStopWaiting();
    await page.connect('');
    await gateway.stop();
    await page.until('waiting to reconnect');
    await page.button('Connect now').click();
    await page.says('attempt 2 of 100');
    await page.until('waiting to reconnect');
    await page.button('Stop waiting').click();
    await page.until('closed');
    assert.equal(await page.state(), 'closed');
    assert.equal(await page.page.evaluate(() => document.activeElement.id), 'connect');
    assert.ok(!(await page.button('Connect now').isVisible()));
    await page.leave();
  });

  it('connects to what the fields say now, and not to what they said before the loss', async (test) => {
    let gateway = await startGateway();
    const { address } = gateway;
    const page = await browser.open(gateway);
    await page.neverStopWaiting();
    await page.connect('old');
    await page.field('Channel').fill('.');
    await gateway.stop();
    await page.until('waiting to reconnect');
    await page.says(`, to ws://${address}/channels/old.`);
    await page.button('Connect now').click();
    assert.equal(await page.page.evaluate(() => document.activeElement.id), 'channel');
    assert.match(await page.state(), /^waiting/);
    await page.field('Channel').fill('old');
    await page.until('closed');

    gateway = await startGateway(`--listen=${address}`);
    await page.connect('old');
    await page.field('Channel').fill('new');
    await gateway.stop();
    await page.until('waiting to reconnect');
    gateway = await startGateway(`--listen=${address}`);
    test.after(() => gateway.stop());
    await page.button('Connect now').click();
    await page.until('open');
    await page.send('hello');
    assert.deepEqual(await page.read(2), [
      ['you', 'channel new', 'hello'],
      ['channel new', 'you', 'hello'],
    ]);
    assert.deepEqual(Object.keys((await gateway.api('channels', {})).result.channels), ['new']);
    await page.leave();
  });

  for (const [field, value] of [
    ['Address', 'ws://127.0.0.1:1/echo'],
    ['Channel', 'new'],
    ['Subprotocol', 'chat'],
    ['Token', 'head.body.signature'],
  ]) {
    it(`waits no longer when the field ${field} changes`, async () => {
      const gateway = await startGateway();
      const page = await browser.open(gateway);
      await page.neverStopWaiting();
      await page.connect('old');
      await gateway.stop();
      await page.until('waiting to reconnect');
      await page.field(field).fill(value);
      await page.until('closed');
      await page.says('no longer waiting, since the fields have changed');
      assert.ok(!(await page.button('Connect now').isVisible()));
      assert.equal(await page.field(field).inputValue(), value);
      await page.leave();
    });
  }

  it('shows a token, and is refused without one', async () => {
    const secret = 'not so secret, not so secret, not so secret';
    const gateway = await startGateway(`--token-hmac-secret=${secret}`);
    const page = await browser.open(gateway);
    await page.field('Reconnect when the connection is lost').uncheck();
    await page.field('Channel').fill('news');
    await page.button('Connect').click();
    await page.until('closed');
    const flags = ['--sub=alice', '--expires-in=1h', '--subscribe=news', '--publish=news'];
    await page.field('Token').fill(makeToken(secret, ...flags));
    await page.connect('news');
    await page.send('it is me');
    assert.deepEqual(await page.read(2), [
      ['you', 'channel news', 'it is me'],
      ['channel news', 'you', 'it is me'],
    ]);
    const metrics = await (await fetch(`http://${gateway.adminAddress}/metrics`)).text();
    assert.match(metrics, /^wsgate_identified_connections 1$/m);
    await page.leave();
    await gateway.stop();
  });

  it('does not wait where it shall not', async () => {
    const gateway = await startGateway();
    const page = await browser.open(gateway);
    await page.field('Reconnect when the connection is lost').uncheck();
    await page.connect('');
    await gateway.stop();
    await page.until('closed');
    await page.says('Closed with 1001 going away');
    await page.leave();
  });
});
