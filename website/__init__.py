"""What the documentation is made with: generated parts of pages, and the site. No part of the installed package."""
